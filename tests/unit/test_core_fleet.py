"""Dependencies, stop order, health, leases, adoption."""

import pytest
from msgspec.structs import replace

from orchestrator.core import adopt, lease
from orchestrator.core import events as e
from orchestrator.core.fleet import Need, dependency_events, stop_levels, unmet
from orchestrator.core.health import Health, health
from orchestrator.core.policy import Lease, Policy
from orchestrator.core.reasons import Cause
from orchestrator.core.state import Hold, Member, Phase, Stage, State, Want
from orchestrator.wire.ids import ReplicaId
from tests.unit.core_driver import Driver

DB, CACHE, WEB = (ReplicaId("t", role, 0) for role in ("db", "cache", "web"))
NEEDS = {WEB: [Need(CACHE), Need(DB, "completed")], CACHE: [Need(DB, "completed")]}


def at(phase: Phase, name: str = "t/db-0", **more) -> State:
    return State(name=name, phase=phase, want=Want.UP, **more)


# ---- dependencies ------------------------------------------------------------------------------


def test_who_waits_is_told_what_changed_and_only_that():
    driver = Driver(Policy(holds=(Hold.DEPENDENCY,)), name="t/web-0").start()
    states = {WEB: driver.state, DB: at(Phase.STARTING), CACHE: at(Phase.READY)}
    [(replica, told)] = dependency_events(NEEDS, states)
    assert replica == WEB
    assert told.reason.sentence == "waits for t/db-0 to be completed; it is starting"
    states[WEB] = driver.feed(told).state
    assert dependency_events(NEEDS, states) == []
    states[DB] = at(Phase.COMPLETED)
    [(_, told)] = dependency_events(NEEDS, states)
    assert driver.feed(told).phase is Phase.STARTING


def test_a_failed_dependency_is_explained():
    failed = replace(at(Phase.FAILED), reason=State(name="x").reason)
    waits = at(Phase.WAITING, "t/cache-0")
    [(_, told)] = dependency_events(NEEDS, {CACHE: waits, DB: failed})
    assert told.reason.sentence.endswith("it is failed: never started")
    assert told.reason.cause is Cause.WAITING_DEPENDENCY


@pytest.mark.parametrize(
    ("condition", "met"),
    [("started", "starting ready completed"), ("ready", "ready"), ("completed", "completed")],
)
def test_each_condition_has_its_phases_and_says_which_it_is(condition, met):
    for phase in Phase:
        reason = unmet([Need(DB, condition)], {DB: at(phase)})
        assert (reason is None) == (phase.value in met.split()), phase
        if reason is not None:
            assert f"waits for t/db-0 to be {condition}; it is {phase.value}" in reason.sentence


def test_what_is_started_has_been_born_and_what_is_ready_is_well():
    ordered = at(Phase.STARTING, members=(Member(stage=Stage.RUNNING), Member()))
    assert "started; it is being born" in unmet([Need(DB, "started")], {DB: ordered}).sentence
    unwell = at(Phase.READY, members=(Member(stage=Stage.RUNNING, overdue=True),))
    assert unmet([Need(DB, "ready")], {DB: unwell}) is not None
    assert unmet([Need(DB, "started")], {DB: unwell}) is None


def test_statement_50_dependants_stop_first_level_by_level():
    assert stop_levels([DB, CACHE, WEB], NEEDS) == [[WEB], [CACHE], [DB]]
    assert stop_levels([DB, CACHE], {}) == [[CACHE, DB]]
    assert stop_levels([], NEEDS) == []


# ---- health ------------------------------------------------------------------------------------


def test_health_in_one_word():
    ready, starting = at(Phase.READY, "t/a-0"), at(Phase.STARTING, "t/b-0")
    failed = at(Phase.FAILED, "t/b-0")
    done = at(Phase.COMPLETED, "t/c-0")
    down = State(name="t/d-0")
    assert health([]) is Health.STOPPED
    assert health([down]) is Health.STOPPED
    assert health([replace(down, phase=Phase.STOPPING, unkillable=True)]) is Health.DEGRADED
    assert health([ready, done, down]) is Health.READY
    assert health([ready, starting]) is Health.STARTING
    assert health([ready, failed]) is Health.FAILED
    assert health([ready, failed, at(Phase.READY, "t/b-1")]) is Health.DEGRADED
    crashed = Driver(name="t/a-0").start().ready().end(1, after_s=1.0).state
    assert health([crashed, at(Phase.READY, "t/a-1")]) is Health.DEGRADED


# ---- leases ------------------------------------------------------------------------------------

POLICY = Lease()


def silence(held: lease.Lease, seconds: int, start: float) -> tuple[lease.Lease, list]:
    said = []
    for tick in range(1, seconds + 1):
        held, verdict = lease.judge(held, start + tick, POLICY)
        said += [(tick, verdict)] if verdict else []
    return held, said


def test_silence_is_missed_after_five_beats_and_expired_after_thirty():
    held, said = silence(lease.grant(100.0), 40, 100.0)
    assert said == [(5, lease.Verdict.MISSED), (30, lease.Verdict.EXPIRED)]
    assert lease.next_look_at(held, POLICY) is None


def test_a_beat_heals():
    held, _ = silence(lease.grant(100.0), 6, 100.0)
    held, verdict = lease.renew(held, 107.0)
    assert verdict is lease.Verdict.FRESH
    held, verdict = lease.renew(held, 108.0)
    assert verdict is None
    _, said = silence(held, 6, 108.0)
    assert said == [(5, lease.Verdict.MISSED)]


def test_a_judge_that_slept_condemns_nobody():
    held, verdict = lease.judge(lease.grant(100.0), 100_000.0, POLICY)
    assert verdict is None
    _, said = silence(held, 5, 100_000.0)
    assert said == [(4, lease.Verdict.MISSED)]


# ---- adoption ----------------------------------------------------------------------------------


def take_over(driver: Driver, *found, boot: str = "b1") -> list:
    saved = adopt.decode(adopt.encode(adopt.Saved("b1", driver.state)))
    driver.state, events = adopt.adopt(saved, boot, found)
    performed = []
    for event in events:
        performed += driver.feed(event).actions
    return performed


def test_a_living_worker_is_kept_with_its_pid():
    driver = Driver().start().ready()
    before = driver.state
    assert take_over(driver, adopt.Alive(100)) == []
    assert driver.state == before


def test_a_start_that_was_never_performed_is_tried_again_for_free():
    driver = Driver().start()
    take_over(driver, adopt.Nothing())
    assert (driver.phase, driver.state.incarnation) == (Phase.STARTING, 2)
    assert (driver.state.counters.row, driver.state.restarts) == (0, 0)
    assert driver.state.last_failure is None


def test_a_birth_nobody_heard_of_is_heard_of():
    driver = Driver(Policy(members=2)).start()
    take_over(driver, adopt.Alive(5), adopt.Alive(6))
    assert [member.pid for member in driver.state.members] == [5, 6]


def test_half_a_gang_is_ended_and_born_again():
    driver = Driver(Policy(members=2)).start()
    take_over(driver, adopt.Alive(5), adopt.Nothing())
    assert driver.phase is Phase.STOPPING
    assert driver.empty(0, 9).phase is Phase.STARTING
    assert driver.state.counters.row == 0


def test_s55_a_death_nobody_saw_is_seen_with_its_true_status():
    driver = Driver().start().ready()
    driver.now += 60.0
    take_over(driver, adopt.Ended(e.ExitFacts(status=7 << 8, tail="late\n")))
    assert driver.phase is Phase.WAITING
    assert "exited with code 7" in driver.state.last_failure.sentence


def test_statement_07_a_tree_without_a_shim_is_killed_and_charged_once():
    driver = Driver().start().ready()
    performed = take_over(driver, adopt.Orphaned())
    assert [action.__struct_config__.tag for action in performed] == [
        "arm-deadline",
        "kill",
        "arm-deadline",
        "kill",
    ]
    driver.empty(status=None)
    assert driver.state.last_failure.cause is Cause.LOST


def test_a_stop_in_progress_goes_on_with_the_grace_that_is_left():
    driver = Driver(Policy(drains=False)).start().ready().stop()
    driver.now += 20.0
    performed = take_over(driver, adopt.Alive(100))
    assert [(x.grace_s, x.linger_s) for x in performed[1:]] == [(40.0, 2.0)]


def test_another_boot_keeps_the_wish_and_the_numbers_and_nothing_else():
    driver = Driver().start().ready()
    performed = take_over(driver, boot="b2")
    assert (driver.phase, driver.state.incarnation) == (Phase.STARTING, 2)
    assert len(performed) == 2
    stopped = Driver().start().ready().stop()
    take_over(stopped, boot="b2")
    assert stopped.phase is Phase.STOPPED


def test_a_wish_survives_a_daemon_that_dies_between_reboot_and_start():
    driver = Driver().start().ready()
    state, _ = adopt.adopt(adopt.Saved("b1", driver.state), "b2", ())
    driver.state = state
    take_over(driver)
    assert driver.phase is Phase.STARTING
