"""Each row of the failure table is found in a real log, and in nothing that only looks like it."""

import random
import re

import pytest

from orchestrator.core.diagnosis import End, diagnose, look_up, worth_hearing
from orchestrator.core.events import ExitFacts
from orchestrator.core.excerpt import EXCERPT_MAX, excerpt
from orchestrator.core.failure_row import When, fill
from orchestrator.core.failure_table import ROWS
from orchestrator.core.log_lines import FINDINGS_MAX, LINE_MAX, findings, parse
from orchestrator.core.policy import Retries
from orchestrator.core.reasons import Cause, Reason
from tests.unit.failure_samples import AFTER, NEAR_MISSES, SAMPLES, SURVIVED, died, raised


def end_of(log: str, ready_s: float | None, *, status: int | None = 1 << 8) -> End:
    return End(name="agg/worker-0", facts=ExitFacts(status=status, tail=log), ready_s=ready_s)


def reason_of(log: str, ready_s: float | None = None, **facts) -> Reason:
    facts = {"status": 1 << 8, "tail": log} | facts
    return diagnose(End(name="agg/worker-0", facts=ExitFacts(**facts), ready_s=ready_s))


def rows_found(log: str, ready_s: float | None) -> list[str]:
    """Numbers of the rows that match, in the order in which they are asked."""
    end, lines = end_of(log, ready_s), parse(log)
    return [
        found[0].number
        for hearsay in (False, True)
        for finding in worth_hearing(end, "", lines)
        if (found := look_up(finding, end, lines, hearsay=hearsay)) is not None
    ]


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"row-{sample.row}" for sample in SAMPLES])
def test_a_row_is_recognised_in_its_log(sample):
    assert rows_found(sample.log, sample.ready_s)[0] == sample.row
    reason = reason_of(sample.log, sample.ready_s)
    assert reason.cause is sample.cause
    assert sample.said in reason.sentence
    assert sample.todo in reason.advice
    assert "ended" not in reason.sentence
    assert "exited with code 1" in reason.sentence
    assert reason.evidence.removesuffix("...") in sample.log
    assert not re.search(r"[{}\[\]]", reason.advice.replace("[1", ""))


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"row-{sample.row}" for sample in SAMPLES])
def test_an_excerpt_is_diagnosed_like_the_whole(sample):
    filler = "(Worker pid=812) INFO 11-22 17:06:50 [x.py:1] all is well, an error is far\n" * 3000
    whole = filler + sample.log
    short = excerpt(whole)
    assert len(short) <= EXCERPT_MAX
    assert excerpt(short) == short
    assert reason_of(short, sample.ready_s) == reason_of(whole, sample.ready_s)


@pytest.mark.parametrize("sample", SAMPLES, ids=[f"row-{sample.row}" for sample in SAMPLES])
def test_what_explains_a_start_explains_nothing_later(sample):
    """Long before the end of a ready life the same words were survived."""
    later = "(EngineCore pid=803) INFO 11-22 19:00:00 [x.py:1] served for hours\n"
    if "ERROR 11-22" in sample.log:
        reason = reason_of(sample.log + "\n" + later, AFTER, status=0)
        assert (reason.cause, reason.evidence) == (Cause.CRASH, later.strip())


def test_every_row_has_a_sample_and_every_number_is_there():
    sampled = {sample.row for sample in SAMPLES} | set(SURVIVED)
    assert {row.number for row in ROWS} == sampled
    assert sampled == {str(number) for number in range(1, 56)}


@pytest.mark.parametrize("number", SURVIVED)
def test_what_ends_a_request_is_not_blamed_for_the_end_of_a_life(number):
    row = next(row for row in ROWS if row.number == number)
    assert row.when is When.NEVER
    assert row.says_so(SURVIVED[number])
    for ready_s in (None, AFTER):
        assert rows_found(SURVIVED[number], ready_s) == []
        cause = reason_of(SURVIVED[number], ready_s).cause
        assert cause in {Cause.START_CRASH, Cause.CRASH}
    both = SURVIVED[number] + "\n" + raised("RuntimeError: No CUDA GPUs are available")
    assert "GPU" in reason_of(both).sentence


@pytest.mark.parametrize("text", NEAR_MISSES)
@pytest.mark.parametrize("ready_s", [None, AFTER])
def test_near_misses_match_no_row(text, ready_s):
    assert rows_found(text, ready_s) == []
    assert rows_found(raised("ValueError: something else\n") + "\n" + text, ready_s) == []


def test_fatal_rows_are_tried_once_and_say_what_to_do():
    assert Retries().of(Cause.CONFIG) == 0
    for row in ROWS:
        assert row.todo
        assert row.when is When.NEVER or row.cause is not Cause.OK


def test_the_innermost_process_is_asked_first():
    log = "\n".join([
        raised("ValueError: No available memory for the cache blocks.", "EngineCore"),
        raised("safetensors_rust.SafetensorError: header too large", "VllmWorker-1"),
    ])  # fmt: skip
    assert "weight file" in reason_of(log).sentence


def test_of_two_tracebacks_of_one_depth_the_first_is_the_root():
    log = raised("RuntimeError: No CUDA GPUs are available") + raised(
        "RuntimeError: NCCL error: unhandled cuda error"
    )
    assert "GPU that it was given" in reason_of(log).sentence


def test_a_rank_that_lost_its_peer_is_not_blamed_while_anything_else_is_known():
    peer = died("RuntimeError: gloo/transport/tcp/pair.cc:5] Connection reset by peer", "Worker")
    own = died("OSError: [Errno 24] Too many open files")
    assert "too few files" in reason_of(peer + "\n" + own, AFTER).sentence


def test_what_is_not_known_is_said_to_be_unknown():
    reason = reason_of(raised("ValueError: the moon is full"))
    assert reason.cause is Cause.START_CRASH
    assert "for no reason that dynorch knows" in reason.sentence
    assert "first error of Worker: ValueError: the moon is full" in reason.sentence
    assert reason.evidence == "ValueError: the moon is full"
    assert reason.advice == "see `dynorch logs agg/worker-0`"


def test_who_was_killed_from_outside_is_not_explained_by_its_log():
    log = raised("safetensors_rust.SafetensorError: header too large")
    reason = reason_of(log, status=15)
    assert "SIGTERM (not by us)" in reason.sentence
    assert "weight" not in reason.sentence


@pytest.mark.parametrize("ready_s", [None, AFTER])
def test_a_sigkill_and_a_risen_oom_count_are_one_story(ready_s):
    facts = {"oom_kills": 1, "oom_in_cgroup": True, "memory_limit_bytes": 8 << 30}
    reason = reason_of("", ready_s, status=9, rss_peak_bytes=7 << 30, **facts)
    assert reason.cause is Cause.HOST_OOM
    assert "in its cgroup (limit 8.0 GiB); its largest process held 7.0 GiB" in reason.sentence
    assert "dmesg" in reason.advice
    grandchild = died("Worker proc VllmWorker-0 died unexpectedly (exit code: -9)")
    assert reason_of(grandchild, ready_s, **facts).cause is Cause.HOST_OOM
    assert reason_of("all is well", ready_s, **facts).cause is not Cause.HOST_OOM
    assert reason_of("", ready_s, status=9, oom_kills=0).cause is not Cause.HOST_OOM
    assert "not by the kernel" in reason_of("", ready_s, status=9, oom_kills=0).sentence


def test_a_bus_error_and_a_full_shm_are_one_story():
    full = reason_of("", AFTER, status=7, shm_bytes=64 << 20, shm_free_bytes=0)
    assert "is too small or full: 0 of 64 MiB left" in full.sentence
    room = reason_of("", AFTER, status=7, shm_bytes=64 << 30, shm_free_bytes=60 << 30)
    assert "cut short" in room.sentence


@pytest.mark.parametrize(
    ("number", "word"), [(4, "another CPU"), (11, "native code"), (6, "SIGABRT")]
)
def test_signals_speak_for_themselves(number, word):
    reason = reason_of("", AFTER, status=number | 0x80)
    assert reason.cause is Cause.CRASH
    assert word in reason.sentence


def test_numbers_are_found_though_a_quote_is_cut():
    long = next(sample for sample in SAMPLES if sample.row == "3").log
    words = next(line for line in long.splitlines() if "To serve at least" in line)
    told = words.partition("] ")[2]
    end = End(name="a/b-0", facts=ExitFacts(status=70 << 8), ready_s=None,
              bye_code="start-crash", bye_text=told)  # fmt: skip
    reason = diagnose(end)
    assert "89120" in reason.advice
    assert len(reason.evidence) <= 240


def test_secrets_in_a_log_stay_there():
    log = "ValueError: bad token hf_abcdefghijklmnop, password=hunter22 http://me:pw99@x/y"
    reason = reason_of(log)
    for secret in ("hf_abc", "hunter22", "pw99"):
        assert secret not in str(reason) + reason.evidence + excerpt(log)
    assert "***" in reason.sentence


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_logged_is_explained_within_bounds(seed):
    chance = random.Random(seed)
    pieces = [sample.log for sample in SAMPLES] + [
        chance.randbytes(500).decode("utf-8", "replace"), "Traceback (most recent call last):\n",
        "(Worker pid=1) ERROR 11-22 17:06:51 [x.py:1]\n", "\x1b[31m", "Process X:\n", "x" * 5000,
        "During handling of the above exception, another\n", "error: a\n", "\u2028", "\0",
    ]  # fmt: skip
    log = "".join(chance.choice(pieces)[chance.randrange(9) :] for _ in range(60))[-65536:]
    short = excerpt(log)
    assert len(short) <= EXCERPT_MAX
    assert len(findings(parse(short))) <= FINDINGS_MAX
    for ready_s in (None, AFTER):
        for status in (None, 0, 256, 6, 7, 9, 34):
            reason = reason_of(short, ready_s, status=status)
            assert 0 < len(str(reason)) < 2000
            assert len(reason.evidence) <= LINE_MAX
            assert str(reason).isprintable()


def test_brackets_go_when_their_names_are_unknown():
    assert fill("no[ {what}] room[: {n} left]", {"n": "3"}) == "no room: 3 left"
