"""The replica machine by scenario: stops, restarts, gangs, adoption."""

import itertools

import msgspec
import pytest

from orchestrator.core import actions as a
from orchestrator.core import diagram, replica
from orchestrator.core import events as e
from orchestrator.core.policy import Policy
from orchestrator.core.reasons import Cause
from orchestrator.core.state import (
    AT_REST,
    Await,
    Deadline,
    Hold,
    Phase,
    Stage,
    decode,
    encode,
    routable,
)
from tests.unit.core_driver import SILENT, Driver

GANG = Policy(members=3)


def test_the_three_parts_of_the_table_are_a_partition():
    product = set(itertools.product(Phase, e.EVENTS))
    parts = [set(replica.HANDLED), set(replica.IGNORED), set(replica.IMPOSSIBLE)]
    assert set().union(*parts) == product
    assert sum(map(len, parts)) == len(product)


def test_an_impossible_event_raises():
    state = Driver().start().ready().state
    corrupt = msgspec.structs.replace(state, deadline=Deadline(Await.START, 7, 9.0))
    assert (Phase.READY, e.DeadlineReached) in replica.IMPOSSIBLE
    with pytest.raises(AssertionError, match="DeadlineReached while ready"):
        replica.step(corrupt, e.DeadlineReached(7), 9.0, Policy())


def test_the_picture_is_the_table(request):
    page = (request.config.rootpath / "docs" / "replica-states.md").read_text()
    assert page == diagram.page(), "python -m orchestrator.core.diagram > docs/replica-states.md"


def test_states_and_events_go_to_json_and_back():
    driver = Driver(GANG).start().born().member(e.SaidBye, 1, "oom-load", "no room")
    driver.member(e.MainExited, 1, 256)
    assert decode(encode(driver.state)) == driver.state
    event = e.TreeEmptied(1, 1, e.ExitFacts(status=9, tail="x"))
    decoder = msgspec.json.Decoder(e.Event)
    assert decoder.decode(msgspec.json.encode(event)) == event
    assert b'"type":"tree-emptied"' in msgspec.json.encode(event)


# ---- readiness ---------------------------------------------------------------------------------


def test_ready_when_a_member_says_so_even_before_its_birth_is_confirmed():
    driver = Driver().start().member(e.BecameReady)
    assert driver.phase is Phase.STARTING
    driver.member(e.Spawned, 0, 7)
    assert driver.phase is Phase.READY
    assert driver.ordered(a.DisarmDeadline)


def test_a_plain_command_is_ready_when_started():
    driver = Driver(Policy(has_readiness=False)).start().born()
    assert routable(driver.state)
    assert driver.cause is Cause.OK


def test_statement_41_a_gang_is_ready_only_when_all_are_and_one_unready_takes_it_out_of_routing():
    driver = Driver(GANG).start().born()
    driver.member(e.BecameReady, 0).member(e.BecameReady, 2)
    assert driver.phase is Phase.STARTING
    driver.member(e.BecameReady, 1)
    assert routable(driver.state)
    driver.member(e.LeaseMissed, 2)
    assert driver.phase is Phase.READY
    assert not routable(driver.state)
    assert driver.actions == ()
    assert "member 2" in driver.state.reason.sentence
    driver.member(e.LeaseRecovered, 2)
    assert routable(driver.state)


def test_a_member_that_freezes_before_its_gang_is_ready_keeps_it_out_of_routing():
    driver = Driver(GANG).start().born().member(e.BecameReady, 0).member(e.LeaseMissed, 0)
    driver.member(e.BecameReady, 1).member(e.BecameReady, 2)
    assert driver.phase is Phase.READY
    assert not routable(driver.state)


def test_silence_while_loading_is_the_start_deadlines_business():
    driver = Driver(GANG).start().born().member(e.LeaseExpired, 0, SILENT)
    assert driver.phase is Phase.STARTING
    driver.member(e.BecameReady, 1).member(e.LeaseExpired, 1, SILENT)
    assert driver.phase is Phase.STOPPING


# ---- stopping ----------------------------------------------------------------------------------


def test_drain_then_one_term_then_gone():
    driver = Driver().start().ready().stop()
    assert driver.ordered(a.Drain) == [a.Drain(0, 1, 30.0)]
    driver.member(e.Drained)
    assert driver.ordered(a.Stop) == [a.Stop(0, 1, 60.0, 2.0)]
    driver.member(e.MainExited, 0, 0)
    assert driver.phase is Phase.STOPPING
    driver.empty()
    assert driver.phase is Phase.STOPPED
    assert driver.state.last_failure is None


def test_a_drain_that_never_ends_is_ended():
    driver = Driver().start().ready().stop().deadline()
    assert driver.now == 30.0
    assert driver.phase is Phase.STOPPING
    assert driver.ordered(a.Stop)


def test_statement_45_term_is_ordered_once_however_often_a_stop_is_asked():
    driver = Driver(Policy(drains=False)).start().ready().stop()
    assert len(driver.ordered(a.Stop)) == 1
    for again in (driver.stop, driver.restart, driver.start, driver.stop):
        again()
        assert driver.actions == ()


def test_statement_46_a_start_is_stopped_with_short_grace_and_a_late_ready_changes_nothing():
    driver = Driver().start().born().stop()
    assert driver.ordered(a.Stop) == [a.Stop(0, 1, 5.0, 2.0)]
    driver.member(e.BecameReady, after_s=1.0)
    assert driver.phase is Phase.STOPPING
    assert not routable(driver.state)
    driver.deadline()
    assert driver.now <= 7.0
    assert driver.ordered(a.Kill) == [a.Kill(0, 1)]


def test_statement_46_one_that_is_born_after_it_was_unwanted_is_killed_at_birth():
    driver = Driver().start().stop()
    assert driver.ordered(a.Stop) == []
    driver.born()
    assert driver.ordered(a.Kill) == [a.Kill(0, 1)]
    assert driver.empty(status=9).phase is Phase.STOPPED


@pytest.mark.parametrize("hold", list(Hold))
def test_statement_47_a_stop_while_held_is_over_at_once(hold):
    crowded = hold is Hold.TURN
    waits = Driver(Policy(holds=() if crowded else (hold,), crowded=crowded)).start()
    assert waits.phase is Phase.WAITING
    waits.stop()
    assert (waits.phase, waits.now, waits.spawned_at) == (Phase.STOPPED, 0.0, [])
    waits.feed(e.Cleared(hold, 0), after_s=1.0)
    assert (waits.phase, waits.spawned_at) == (Phase.STOPPED, [])


def test_statement_47_a_stop_while_waiting_is_over_at_once():
    driver = Driver().start().ready().end(1, after_s=1.0)
    assert driver.phase is Phase.WAITING
    serial = driver.state.deadline.serial
    driver.stop()
    assert driver.phase is Phase.STOPPED
    assert driver.ordered(a.DisarmDeadline)
    driver.feed(e.DeadlineReached(serial), after_s=10.0)
    assert driver.phase is Phase.STOPPED
    assert len(driver.spawned_at) == 1


@pytest.mark.parametrize("order", list(itertools.permutations((2, 3, 4))))
def test_statement_48_the_request_with_the_highest_intent_wins_whatever_the_order(order):
    asked = {2: e.RestartRequested(2), 3: e.StartRequested(3), 4: e.StopRequested(4)}
    driver = Driver(Policy(drains=False)).start().ready()
    for intent in order:
        driver.feed(asked[intent])
    driver.empty()
    assert driver.phase is Phase.STOPPED


def test_statement_49_stop_at_once_kills_in_every_live_phase():
    for prepare in (Driver.born, Driver.ready, lambda d: d.ready().stop()):
        driver = prepare(Driver().start()).stop(at_once=True)
        assert driver.ordered(a.Kill) == [a.Kill(0, 1)]
        assert driver.empty(status=9).phase is Phase.STOPPED


def test_statement_11_an_unkillable_tree_is_named_and_never_restarted_beside_itself():
    driver = Driver().start().ready().member(e.MainExited, 0, 9)
    assert driver.ordered(a.Kill)
    driver.member(e.TreeStuck, 0, "pid 812 (D, uvm_wait)")
    assert driver.state.unkillable
    assert "812" in driver.state.reason.sentence
    for _ in range(50):
        driver.deadline()
        assert driver.phase is Phase.STOPPING
    driver.start().deadline()
    assert driver.phase is Phase.STOPPING
    assert driver.cause is Cause.UNKILLABLE
    assert len(driver.spawned_at) == 1
    driver.empty(status=9)
    assert driver.phase is Phase.STARTING


def test_unkillable_is_noticed_without_a_word_from_the_shim():
    driver = Driver().start().ready().stop(at_once=True).deadline()
    assert driver.state.unkillable
    assert driver.now == 10.0


# ---- restarting --------------------------------------------------------------------------------


def test_a_restart_drains_stops_starts_again_and_costs_nothing():
    driver = Driver().start().ready().restart()
    assert driver.phase is Phase.DRAINING
    driver.member(e.Drained).member(e.MainExited, 0, 0).empty()
    assert driver.phase is Phase.STARTING
    assert driver.state.incarnation == 2
    assert (driver.state.restarts, driver.state.counters.row) == (0, 0)


def test_a_crash_in_the_middle_of_a_drain_is_not_a_failure():
    driver = Driver().start().ready().restart().end(1)
    assert driver.phase is Phase.STARTING
    assert driver.state.counters.row == 0


def test_a_start_while_it_stops_means_a_new_life_afterwards():
    driver = Driver().start().ready().stop().start().member(e.Drained).empty()
    assert driver.phase is Phase.STARTING


def test_a_start_by_hand_skips_the_backoff():
    driver = Driver().start().ready().end(1, after_s=1.0).start()
    assert driver.phase is Phase.STARTING


# ---- gangs -------------------------------------------------------------------------------------


def test_statement_38_all_members_are_spawned_together():
    driver = Driver(GANG).start()
    assert driver.ordered(a.Spawn) == [a.Spawn(i, 1) for i in range(3)]


def test_statement_37_one_death_kills_the_others_and_the_next_life_waits_for_all():
    driver = Driver(GANG).start().ready().member(e.MainExited, 1, 9, after_s=700.0)
    assert driver.ordered(a.Kill) == [a.Kill(i, 1) for i in range(3)]
    driver.empty(1, 9).empty(0, 9)
    assert driver.phase is Phase.STOPPING
    driver.empty(2, 9)
    assert driver.ordered(a.Spawn) == [a.Spawn(i, 2) for i in range(3)]


def test_statement_39_three_deaths_in_one_teardown_count_once_with_the_class_of_the_first():
    driver = Driver(GANG).start().ready().member(e.MainExited, 1, 9, after_s=5.0)
    driver.member(e.MainExited, 0, 2 << 8).member(e.ShimLost, 2)
    for member in range(3):
        driver.empty(member, 9)
    assert driver.state.counters.row == 1
    assert driver.state.last_failure.cause is Cause.CRASH
    assert "member 1" in driver.state.last_failure.sentence


CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4113"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("said", ["before", "between"])
def test_who_heard_of_a_death_first_is_explained_by_who_died(order, said):
    """Its engine was ended by the other's, which needs longer to end itself."""
    driver = Driver(Policy(members=2)).start().ready()
    words = (e.SaidBye, 0, "engine-died", "VLLM::DPCoordinator was killed by SIGKILL")
    if said == "before":
        driver.member(*words)
    driver.member(e.MainExited, 1, 71 << 8, after_s=40.0)
    if said == "between":
        driver.member(*words)
    for member in order:
        driver.empty(member, 9 if member == 0 else 71 << 8, tail=CLOSED if member else "")
    sentence = driver.state.last_failure.sentence
    assert sentence.startswith("member 0: VLLM::DPCoordinator was killed by SIGKILL; then member 1")
    assert "another rank of its group died" in sentence


@pytest.mark.parametrize("said", ["", CLOSED])
def test_hearsay_is_all_there_is_if_nobody_says_more(said):
    driver = Driver(Policy(members=2)).start().ready()
    driver.member(e.SaidBye, 0, "engine-died", said).member(e.MainExited, 1, 71 << 8)
    driver.empty(1, 71 << 8, tail=CLOSED).empty(0, 9)
    assert driver.state.last_failure.sentence.startswith("member 1: another rank of its group died")


def test_statement_40_a_member_out_of_memory_twice_fails_the_gang():
    driver = Driver(GANG).start()
    for _ in range(2):
        if driver.phase is Phase.WAITING:
            driver.deadline()
        driver.born().member(e.MainExited, 2, 256)
        driver.empty(0, 9).empty(1, 9).empty(2, 256, tail="CUDA out of memory")
    assert (driver.phase, driver.cause) == (Phase.FAILED, Cause.OOM_LOAD)
    assert driver.state.members == ()


def test_a_member_that_cannot_be_born_takes_the_gang_down():
    driver = Driver(GANG).start().member(e.Spawned, 0, 7)
    driver.member(e.SpawnFailed, 1, "", "fork: Resource temporarily unavailable")
    assert driver.ordered(a.Kill) == [a.Kill(0, 1)]
    driver.member(e.Spawned, 2, 8)
    assert driver.ordered(a.Kill) == [a.Kill(2, 1)]
    driver.empty(0, 9).empty(2, 9)
    assert driver.phase is Phase.WAITING
    assert "Resource temporarily" in driver.state.last_failure.sentence


def test_statement_43_a_stop_during_teardown_or_backoff_spawns_nothing_afterwards():
    driver = Driver(GANG).start().ready().member(e.MainExited, 1, 9, after_s=5.0).stop()
    for member in range(3):
        driver.empty(member, 9)
    assert (driver.phase, len(driver.spawned_at)) == (Phase.STOPPED, 1)
    driver.start().ready().member(e.MainExited, 1, 9, after_s=5.0)
    for member in range(3):
        driver.empty(member, 9)
    assert (driver.phase, driver.cause) == (Phase.WAITING, Cause.BACKOFF)
    serial = driver.state.deadline.serial
    driver.stop().feed(e.DeadlineReached(serial), after_s=100.0)
    assert (driver.phase, len(driver.spawned_at)) == (Phase.STOPPED, 2)


# ---- the gate ----------------------------------------------------------------------------------


def test_a_ready_of_the_life_before_does_not_make_this_one_routable():
    driver = Driver().start().ready().end(1, after_s=1.0).deadline().born()
    before = driver.state
    driver.feed(e.BecameReady(0, 1))
    assert driver.state is before


def test_facts_that_come_twice_change_nothing_the_second_time():
    driver = Driver(GANG).start().ready().member(e.MainExited, 1, 9)
    before = driver.state
    for event in (e.MainExited(1, 1, 9), e.Spawned(0, 1, 3), e.BecameReady(0, 1)):
        assert driver.feed(event).state == before
    driver.empty(1, 9)
    before = driver.state
    assert driver.empty(1, 9).state is before


def test_ready_is_at_rest_so_an_idle_daemon_has_no_timer():
    driver = Driver().start().ready()
    assert driver.state.deadline is None
    assert driver.phase in AT_REST


# ---- explaining --------------------------------------------------------------------------------


def test_the_reason_is_sharpened_when_the_log_is_there():
    driver = Driver().start().ready().member(e.MainExited, 0, 3 << 8, after_s=2.1)
    assert driver.state.reason.sentence == "exited with code 3, 2.1 s after it became ready"
    driver.empty(status=3 << 8, tail="one\nboom\n\n")
    assert "last line: boom" in driver.state.last_failure.sentence
    assert driver.state.reason.sentence.startswith("restarts after ")


def test_an_exit_without_a_record_keeps_what_was_seen():
    driver = Driver().start().ready().member(e.MainExited, 0, 9, after_s=2.0).empty(status=None)
    assert driver.state.last_failure.cause is Cause.CRASH
    assert "SIGKILL" in driver.state.last_failure.sentence


def test_statement_06_a_lost_shim_counts_once_and_its_tree_is_killed():
    driver = Driver().start().ready().member(e.ShimLost, after_s=2.0)
    assert driver.ordered(a.Kill) == [a.Kill(0, 1)]
    driver.empty(status=None)
    assert driver.state.last_failure.cause is Cause.LOST
    assert driver.state.counters.weight == 1.0


def test_last_words_name_the_cause():
    driver = Driver().start().ready().member(e.SaidBye, 0, "engine-died", "VLLM::EngineCore died")
    driver.end(0, after_s=3.0)
    assert driver.state.last_failure.cause is Cause.ENGINE_DIED
    assert driver.state.members == ()
    assert "VLLM::EngineCore died" in driver.state.last_failure.sentence


def test_stages_are_what_the_facts_say():
    driver = Driver(GANG).start().member(e.Spawned, 0, 41)
    stages = [member.stage for member in driver.state.members]
    assert stages == [Stage.RUNNING, Stage.ORDERED, Stage.ORDERED]
    assert driver.state.members[0].pid == 41
