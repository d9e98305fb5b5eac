"""What beats say becomes a verdict: the table of all that can be wrong, and of what never is."""

import pytest

from orchestrator.core import events as e
from orchestrator.core import liveness
from orchestrator.core.lease import Verdict
from orchestrator.core.liveness import Vitals, Watch
from orchestrator.core.policy import Lease, Policy
from orchestrator.core.reasons import Cause
from orchestrator.core.state import routable
from tests.unit.core_driver import Driver
from workers.runtime.kin import Kin, below, describe
from workers.runtime.pulse import Awake, Pulse

POLICY = Policy()
WHO = "agg/worker-0.0"
FRESH, MISSED, EXPIRED = Verdict.FRESH, Verdict.MISSED, Verdict.EXPIRED
STOPPED = {"suspect": "VLLM::EngineCore (pid 7) is stopped (state T)", "stopped": True}


@pytest.mark.parametrize(
    ("vitals", "verdict", "said"),
    [
        (Vitals(), FRESH, ""),
        # The event loop.
        (Vitals(loop_age_s=4.9), FRESH, ""),
        (
            Vitals(loop_age_s=5, loop_at="f (a.py:3)"),
            MISSED,
            "loop hasn't turned for 5 s: it is in f",
        ),
        (Vitals(loop_age_s=30), EXPIRED, "loop hasn't turned for 30 s"),
        # An idle engine that owes an answer.
        (Vitals(engine_age_s=14.9), FRESH, ""),
        (Vitals(engine_age_s=15), MISSED, "the engine hasn't answered for 15 s"),
        (Vitals(engine_age_s=45, **STOPPED), EXPIRED, "EngineCore (pid 7) is stopped (state T)"),
        # A busy one may be in a long step; one of whose processes is stopped is in none.
        (Vitals(engine_age_s=44, stalled_s=44), FRESH, ""),
        (Vitals(engine_age_s=45, stalled_s=45), MISSED, "hasn't answered for 45 s"),
        (Vitals(engine_age_s=120, stalled_s=120), EXPIRED, "hasn't answered for 120 s"),
        (Vitals(engine_age_s=15, stalled_s=15, **STOPPED), MISSED, "is stopped"),
        (Vitals(engine_age_s=45, stalled_s=45, **STOPPED), EXPIRED, "is stopped"),
        # It answers, and yet no token comes.
        (Vitals(stalled_s=599), FRESH, ""),
        (Vitals(stalled_s=600), EXPIRED, "no token has come for 600 s"),
        # Canaries.
        (Vitals(canaries_missed=1, canary_fault="had no answer after 30 s"), MISSED, "no answer"),
        (Vitals(canaries_missed=2, canary_fault="was answered 500"), MISSED, "2 requests in a row"),
        (Vitals(canaries_missed=3, canary_fault="was answered 500"), EXPIRED, "was answered 500"),
        # The canaries give it up first; the question that the engine owes is the deeper reason.
        (
            Vitals(canaries_missed=3, canary_fault="had no answer", engine_age_s=31.0),
            EXPIRED,
            "the engine hasn't answered for 31 s, and 3 requests in a row",
        ),
        # Of several complaints the worst, and of equals the loop: nothing else is asked then.
        (Vitals(loop_age_s=6, engine_age_s=45), EXPIRED, "the engine"),
        (Vitals(loop_age_s=6, engine_age_s=16), MISSED, "loop"),
    ],
)
def test_verdicts(vitals, verdict, said):
    found = liveness.judge(vitals, POLICY)
    assert found.verdict is verdict
    assert said in (found.reason.sentence if found.reason else "")
    if verdict is not FRESH:
        assert found.reason.cause is (Cause.UNHEALTHY if verdict is EXPIRED else Cause.UNREADY)


def test_only_changes_are_news_and_less_bad_is_not_yet_good():
    watch = liveness.begin(0.0)
    seen = []
    for now, age_s in enumerate([0, 6, 7, 31, 32, 8, 0, 0]):
        watch, news = liveness.hear(watch, Vitals(loop_age_s=age_s), float(now), POLICY)
        seen.append(news and news.verdict)
    assert seen == [None, MISSED, None, EXPIRED, None, None, FRESH, None]


def test_a_worker_that_is_not_ready_is_not_judged_by_its_words():
    watch, news = liveness.hear(liveness.begin(0.0), None, 1.0, POLICY)
    assert (watch.verdict, news) == (FRESH, None)


def listen(watch: Watch, seconds: int, start: int):
    seen = []
    for now in range(start, start + seconds):
        watch, news = liveness.look(watch, WHO, float(now), POLICY)
        seen += [(now - start + 1, news.verdict)] if news else []
    return watch, seen


def test_silence_is_judged_beside_what_was_said_before_it():
    watch, _ = liveness.hear(liveness.begin(0.0), Vitals(), 0.0, POLICY)
    watch, seen = listen(watch, 40, 1)
    assert seen == [(5, MISSED), (30, EXPIRED)]
    watch, _ = liveness.hear(liveness.begin(0.0), Vitals(loop_age_s=6), 0.0, POLICY)
    watch, seen = listen(watch, 40, 1)
    assert seen == [(30, EXPIRED)], "it was unready already"


def test_a_worker_that_was_told_to_beat_slowly_is_expected_to():
    """The file asks for quicker beats by now; this life doesn't know."""
    hasty = Policy(lease=Lease(period_s=0.1, misses_max=3, expire_s=20.0))
    watch, _ = liveness.hear(liveness.begin(0.0), Vitals(period_s=2.0), 0.0, hasty)
    assert liveness.next_look_at(watch, hasty) == 2.0
    seen = []
    for now in range(1, 22):
        watch, news = liveness.look(watch, WHO, float(now), hasty)
        seen += [(now, news.verdict)] if news else []
    assert seen == [(6, MISSED), (20, EXPIRED)]


def test_a_beat_ends_a_silence_but_not_what_it_tells_of():
    watch, _ = listen(liveness.begin(0.0), 6, 1)
    watch, news = liveness.hear(watch, Vitals(engine_age_s=20), 7.0, POLICY)
    assert (watch.verdict, news) == (MISSED, None)
    watch, news = liveness.hear(watch, Vitals(), 8.0, POLICY)
    assert news.verdict is FRESH


def test_a_ready_replica_shows_what_its_member_suffers_from_and_forgets_it():
    driver = Driver(Policy(members=2)).start().ready()
    found = liveness.judge(Vitals(engine_age_s=20, **STOPPED), POLICY)
    driver.member(e.LeaseMissed, 1, found.reason)
    assert not routable(driver.state)
    assert driver.state.reason.sentence.startswith("member 1: the engine hasn't answered for 20 s")
    driver.member(e.LeaseRecovered, 1)
    assert (routable(driver.state), driver.cause) == (True, Cause.OK)
    driver.member(e.LeaseMissed, 0)
    assert "stopped beating" in driver.state.reason.sentence


class TestAges:
    """The worker measures them, and a worker that slept can't have measured."""

    def awake(self):
        clock = Awake(1.0)
        clock.tick(100.0)
        return clock

    def test_a_round_trip_ages_until_it_is_answered(self):
        clock = self.awake()
        pulse = Pulse(clock)
        assert pulse.engine_age_s() == 0
        pulse.asked()
        for now in (101.0, 102.0, 103.0):
            clock.tick(now)
        assert pulse.engine_age_s() == 3
        pulse.answered()
        assert pulse.engine_age_s() == 0

    def test_an_hour_in_which_we_were_stopped_is_two_seconds(self):
        clock = self.awake()
        pulse = Pulse(clock)
        pulse.asked()
        clock.tick(3700.0)
        assert pulse.engine_age_s() == 2

    def test_work_without_tokens_is_a_stall_and_idleness_never(self):
        clock = self.awake()
        pulse = Pulse(clock)
        steps = [(0, False), (0, False), (0, True), (0, True), (5, True), (5, True), (5, False)]
        ages = []
        for second, (tokens, busy) in enumerate(steps, 101):
            clock.tick(float(second))
            ages.append(pulse.stalled_s(tokens, busy=busy))
        assert ages == [0, 0, 1, 2, 0, 1, 0]

    def test_canaries_are_counted_in_a_row_and_their_tokens_never(self):
        pulse = Pulse(self.awake())
        assert pulse.shown(10) == 10
        pulse.canary("", 1)
        assert pulse.shown(10) == 10, "its token is counted a little later"
        assert pulse.shown(11) == 10
        pulse.canary("had no answer", 1)
        pulse.canary("had no answer", 1)
        assert (pulse.canaries_missed, pulse.shown(12)) == (2, 11)
        pulse.excuse()
        assert (pulse.canaries_missed, pulse.canary_fault) == (0, "")


def test_the_kernel_names_who_is_stopped_or_else_everybody():
    core, worker = Kin(7, "VLLM::EngineCore", "S"), Kin(8, "VLLM::Worker", "R")
    text, stopped = describe([core, worker])
    assert (text, stopped) == (
        "VLLM::EngineCore (pid 7) sleeps (state S), VLLM::Worker (pid 8) runs (state R)",
        False,
    )
    text, stopped = describe([core, worker._replace(state="T")])
    assert (text, stopped) == ("VLLM::Worker (pid 8) is stopped (state T)", True)
    assert describe([]) == ("", False)


def test_many_processes_are_a_bounded_sentence():
    text, _ = describe([Kin(pid, "x" * 40, "S") for pid in range(64)])
    assert text.endswith("and 58 more")
    assert len(text) < 600


def test_nobody_is_below_a_process_that_is_not_there():
    assert below(2**30) == []
