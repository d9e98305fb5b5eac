"""Answers become verdicts: a start may fail for ever, unreadiness comes late and goes at once."""

import pytest

from orchestrator.core import events as e
from orchestrator.core import policy as p
from orchestrator.core.policy import Policy
from orchestrator.core.probe import Probe, Verdict, Watch, answered, pause_s, unanswered
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Await, Phase
from tests.unit.core_driver import Driver

HTTP = Probe(kind="http", target="http://x/")


def feed(watch: Watch, answers: str, probe: Probe = HTTP) -> tuple[Watch, list]:
    """`+` is a good answer, `-` a bad one; returns the verdicts, None where nothing follows."""
    verdicts = []
    for answer in answers:
        watch, verdict = answered(watch) if answer == "+" else unanswered(watch, probe)
        verdicts.append(verdict)
    return watch, verdicts


def test_a_start_may_go_unanswered_for_ever():
    _, verdicts = feed(Watch(), "-" * 500 + "+")
    assert verdicts == [None] * 500 + [Verdict.READY]


def test_three_misses_in_a_row_make_it_unready_and_one_answer_brings_it_back():
    _, verdicts = feed(Watch(ready=True), "--+" + "---" + "--" + "+" + "+")
    misses = [None, None, Verdict.MISSED]
    assert verdicts == [None, None, None, *misses, None, None, Verdict.BACK, None]


def test_liveness_ends_after_its_misses_and_asks_no_more():
    probe = Probe(kind="tcp", target="x:1", misses_max=6)
    watch, verdicts = feed(Watch(vital=True, ready=True), "-----+" + "------", probe)
    assert verdicts == [None] * 11 + [Verdict.DEAD]
    assert pause_s(watch, probe) is None


def test_a_starting_process_is_asked_soon_and_then_once_a_second():
    watch, pauses = Watch(), []
    for _ in range(8):
        pauses.append(pause_s(watch, HTTP))
        watch, _ = unanswered(watch, HTTP)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    watch, _ = answered(watch)
    assert pause_s(watch, HTTP) == 2.0
    quick = Probe(kind="exec", argv=("x",), period_s=0.3)
    assert pause_s(Watch(asked=10**9), quick) == 0.3


def test_a_log_is_looked_at_often_and_after_the_line_never_again():
    probe = Probe(kind="log", target="up")
    assert pause_s(Watch(asked=20), probe) == 0.2
    watch, verdict = answered(Watch())
    assert verdict is Verdict.READY
    assert pause_s(watch, probe) is None
    assert pause_s(Watch(ready=True), probe) is None


# What the replica makes of time.


def test_statement_28_slow_is_not_dead_and_silent_is_tried_twice():
    slow = Driver(Policy()).start().ready(after_s=1200)
    assert slow.phase is Phase.READY
    silent = Driver(Policy()).start()
    for _ in range(2):
        assert silent.phase is Phase.STARTING
        silent.born().deadline().empty(status=9)
        if silent.phase is Phase.WAITING:
            silent.deadline()
    assert (silent.phase, silent.cause) == (Phase.FAILED, Cause.START_TIMEOUT)
    assert len(silent.spawned_at) == 2


def test_statement_29_extensions_move_the_deadline_and_never_past_the_limit():
    driver = Driver(Policy(start=p.Start(timeout_s=100, timeout_max_s=250))).start().born()
    driver.member(e.MoreTimeAsked, 0, 100.0, after_s=90)
    assert driver.state.deadline.at == 190
    driver.member(e.MoreTimeAsked, 0, 5.0)
    assert driver.state.deadline.at == 190
    driver.member(e.MoreTimeAsked, 0, 1e9, after_s=90)
    assert driver.state.deadline.at == 250
    driver.deadline()
    assert (driver.now, driver.cause) == (250, Cause.START_TIMEOUT)
    assert "after 4 min" in driver.state.reason.sentence


SETTLES = Policy(has_readiness=False, start=p.Start(settle_s=1.0))


def test_what_cannot_say_it_is_ready_when_it_has_lived_a_second():
    driver = Driver(SETTLES).start().born()
    assert (driver.phase, driver.state.deadline.what) == (Phase.STARTING, Await.SETTLE)
    driver.reload().feed(e.DaemonRestarted(), after_s=0.5)
    assert driver.state.deadline.at == 1.0
    driver.member(e.MoreTimeAsked, 0, 50.0)
    assert driver.state.deadline.at == 1.0
    assert driver.deadline().phase is Phase.READY
    assert driver.now == 1.0


def test_what_crashes_at_once_was_never_ready_and_is_given_up_after_three_starts():
    driver = Driver(SETTLES).start()
    for _ in range(3):
        driver.born().end(code=3, after_s=0.2)
        if driver.phase is Phase.WAITING:
            driver.deadline()
    assert (driver.phase, driver.cause) == (Phase.FAILED, Cause.START_CRASH)
    assert len(driver.spawned_at) == 3


def test_a_miss_is_shown_with_its_reason_and_forgotten_with_the_next_answer():
    driver = Driver(Policy()).start().ready()
    driver.member(e.LeaseMissed, 0, Reason(Cause.UNREADY, "unready: x: refused"))
    assert (driver.phase, driver.cause) == (Phase.READY, Cause.UNREADY)
    assert driver.state.reason.sentence == "unready: x: refused"
    assert driver.member(e.LeaseRecovered).cause is Cause.OK


@pytest.mark.parametrize(("code", "phase"), [(0, Phase.COMPLETED), (1, Phase.WAITING)])
def test_a_oneshot_is_done_when_it_has_ended_with_0_and_never_ready(code, phase):
    driver = Driver(Policy(oneshot=True)).start().born()
    assert driver.phase is Phase.STARTING
    assert driver.end(code=code, after_s=3600).phase is phase
