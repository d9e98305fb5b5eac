"""What is valid and has a price: one line of advice, with file, line, key, found and right."""

from textwrap import dedent

import pytest

from orchestrator.cli import files
from orchestrator.topology.advice import DECODE_SHARE, advice, frozen_found_s
from orchestrator.topology.load import parse
from orchestrator.topology.policies import LivenessPolicy
from workers.frontend.tickets import MARGIN_SHARE

PAIR = dedent("""\
    name = "t"
    model = "m"
    [roles.p]
    kind = "prefill"
    [roles.d]
    kind = "decode"
    {role}
    [kv-transfer]
    connector = "nixl"
    {lease}
    """)


def given(lease: str = "", role: str = "") -> list[str]:
    return list(map(str, advice(parse(PAIR.format(lease=lease, role=role), "t.toml", {}))))


def test_a_lease_that_ends_before_a_frozen_decode_worker_does():
    (said,) = given('lease = "60s"')
    assert said == (
        "t.toml:10: kv-transfer.lease: 60s is less than twice the 57s in which a frozen worker of"
        " role d is found, so decode may read blocks that are another prompt's by then, and answer"
        ' wrongly; write lease = "114s" or more'
    )


@pytest.mark.parametrize("lease", ["", 'lease = "114s"', 'lease = "10m"'])
def test_a_lease_that_is_long_enough_needs_no_advice(lease):
    assert given(lease) == []


def test_who_is_found_later_needs_a_longer_lease():
    (said,) = given(role='liveness = { hang = "100s" }')
    assert said.startswith("t.toml:8: kv-transfer.lease: 120s is less than twice the 112s in which")
    assert said.endswith('; write lease = "224s" or more')


@pytest.mark.parametrize(
    ("role", "who"),
    [
        ('[roles.p.liveness]\nexpire = "90s"', "worker of role p"),
        ('[frontend.liveness]\nexpire = "90s"', "frontend"),
    ],
)
def test_a_ticket_may_also_be_held_up_on_its_way_to_the_frontend(role, who):
    (said,) = given(role=role)
    assert f"120s is less than twice the 92s in which a frozen {who} is found" in said


def test_who_is_found_sooner_may_have_a_shorter_one():
    quick = '[liveness]\nhang = "8s"\nunready = "5s"\nask = "1s"\nexpire = "6s"'
    assert given('lease = "32s"', quick) == []
    assert len(given('lease = "31s"', quick)) == 1


def test_the_time_is_that_of_the_page_on_liveness_and_the_share_that_of_tickets():
    assert frozen_found_s(LivenessPolicy()) == 57
    assert DECODE_SHARE == MARGIN_SHARE


def test_without_a_transfer_there_is_nothing_to_say():
    assert advice(parse('name = "t"\nmodel = "m"\n[roles.w]\n', "t.toml", {})) == []


def test_an_operator_reads_it_wherever_the_file_is_read(tmp_path, capsys):
    path = tmp_path / "t.toml"
    path.write_text(PAIR.format(lease='lease = "60s"', role=""))
    for verb in (
        lambda: files.validate(path),
        lambda: files.plan(path, "sim", None, as_json=False),
        lambda: files.read(path, engine="sim"),
    ):
        verb()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"note: {path}:10: kv-transfer.lease: 60s is less than")
