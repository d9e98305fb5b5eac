"""A journal that a daemon has written decides the same again, and a changed one is noticed."""

import msgspec
import pytest

from orchestrator.core import restart
from orchestrator.daemon.publisher import decode_record, encode_record, replay
from tests.sim.daemon import inside
from tests.sim.run import Run


def journal_of(seed: int) -> list[bytes]:
    run = Run(seed)
    run.report.journal = []
    with inside(run.world):
        run.go()
    return run.report.journal


@pytest.mark.parametrize("seed", range(100, 130))
def test_what_was_decided_is_decided_again(seed):
    """Over crashes of daemons, reboots and full files."""
    lines = journal_of(seed)
    done = replay(lines)
    assert done.wrong == []
    assert done.skipped == 0
    assert done.checked == len(lines)


def test_a_torn_line_is_a_gap_and_the_rest_is_checked():
    lines = journal_of(7)
    done = replay([*lines[:3], lines[3][:20], *lines[4:]])
    assert done.wrong == []
    assert 1 <= done.skipped < len(lines) / 2
    assert done.checked > len(lines) / 2
    assert replay(lines[5:]).wrong == []


def test_another_rule_is_noticed(monkeypatch):
    lines = [line for seed in range(100, 105) for line in journal_of(seed)]
    assert replay(lines).wrong == []
    monkeypatch.setattr(restart, "backoff_s", lambda *_: 3.0)
    done = replay(lines)
    assert done.differences == len(done.wrong) > 0
    assert "ordered" in done.wrong[0] or "another state" in done.wrong[0]


def test_another_action_is_noticed():
    lines = journal_of(7)
    for at, line in enumerate(lines):
        core = decode_record(line).core
        if any(action["type"] == "spawn" for action in core["actions"]):
            core["actions"] = [one for one in core["actions"] if one["type"] != "spawn"]
            lines[at] = encode_record(msgspec.structs.replace(decode_record(line), core=core))
            break
    assert "now [" in replay(lines).wrong[0]
