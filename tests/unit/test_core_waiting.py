"""What keeps a replica from its start, what extends it, and what ends it on behalf of others."""

import pytest
from msgspec.structs import replace

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core import fleet
from orchestrator.core.policy import Policy, Start, Stop
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Hold, Phase
from tests.unit.core_driver import Driver


def test_dependencies_are_confirmed_afresh_at_each_start():
    waits = Driver(Policy(holds=(Hold.DEPENDENCY,))).start()
    assert (waits.phase, waits.cause) == (Phase.WAITING, Cause.WAITING_DEPENDENCY)
    waits.feed(e.Cleared(Hold.DEPENDENCY, 0)).ready().end(1, after_s=1.0)
    waits.deadline()
    assert waits.phase is Phase.WAITING
    waits.feed(e.Cleared(Hold.DEPENDENCY, 0))
    assert waits.phase is Phase.WAITING, "that was about the first start"
    waits.feed(e.Cleared(Hold.DEPENDENCY, 1))
    assert waits.phase is Phase.STARTING
    waits.feed(e.Cleared(Hold.DEPENDENCY, 1))
    assert waits.phase is Phase.STARTING


def test_every_hold_must_be_cleared_and_a_crowd_waits_for_its_turn():
    waits = Driver(Policy(holds=(Hold.DEPENDENCY, Hold.GPU), crowded=True)).start()
    assert waits.cause is Cause.WAITING_DEPENDENCY
    waits.feed(e.Cleared(Hold.DEPENDENCY, 0))
    assert waits.cause is Cause.WAITING_GPU
    taken = Reason(Cause.WAITING_GPU, "GPU 0 is held by pid 7")
    waits.feed(e.Held(Hold.GPU, 0, taken))
    assert waits.state.reason == taken
    waits.feed(e.Cleared(Hold.GPU, 0))
    assert (waits.phase, waits.cause) == (Phase.WAITING, Cause.WAITING_TURN)
    assert fleet.wants_turn(waits.state)
    waits.feed(e.Held(Hold.GPU, 0, taken))
    assert not fleet.wants_turn(waits.state), "its turn is no good to it without its GPU"
    waits.feed(e.Cleared(Hold.GPU, 0))
    waits.policy = replace(waits.policy, crowded=False)
    waits.feed(e.Cleared(Hold.TURN, 0))
    assert waits.phase is Phase.STARTING
    assert fleet.is_being_born(waits.state)
    assert not fleet.is_being_born(waits.born().state)


def test_holds_run_beside_the_backoff_and_are_asked_again_by_a_new_daemon():
    waits = Driver(Policy(holds=(Hold.GPU,))).start().feed(e.Cleared(Hold.GPU, 0))
    waits.ready().end(1, after_s=1.0)
    assert waits.cause is Cause.BACKOFF
    waits.feed(e.Cleared(Hold.GPU, 1))
    assert waits.cause is Cause.BACKOFF
    waits.reload().feed(e.DaemonRestarted()).deadline()
    assert waits.cause is Cause.WAITING_GPU, "what the old daemon saw proves nothing"
    assert waits.feed(e.Cleared(Hold.GPU, 1)).phase is Phase.STARTING


def test_a_start_is_extended_never_shortened_and_never_past_its_maximum():
    starts = Driver(Policy(start=Start(timeout_s=10.0, timeout_max_s=30.0))).start().born()
    assert starts.member(e.MoreTimeAsked, 0, 2.0, after_s=1.0).state.deadline.at == 10.0
    assert starts.member(e.MoreTimeAsked, 0, 15.0, after_s=4.0).state.deadline.at == 20.0
    assert starts.member(e.MoreTimeAsked, 0, 1e9).state.deadline.at == 30.0
    assert starts.deadline().cause is Cause.START_TIMEOUT
    assert "30" in starts.state.reason.sentence


STOPS = Policy(stop=Stop(grace_s=10.0, grace_max_s=30.0, linger_s=2.0), drains=False)


def test_a_stop_is_extended_never_shortened_and_never_past_its_maximum():
    stops = Driver(STOPS).start().ready().stop()
    assert stops.member(e.MoreTimeAsked, 0, 2.0, after_s=1.0).state.deadline.at == 12.0
    assert not stops.actions
    assert stops.member(e.MoreTimeAsked, 0, 15.0, after_s=4.0).state.deadline.at == 22.0
    assert stops.ordered(a.Stop) == [a.Stop(0, 1, 15.0, 2.0)]
    assert stops.member(e.MoreTimeAsked, 0, 1e9, after_s=5.0).state.deadline.at == 32.0
    assert stops.ordered(a.Stop) == [a.Stop(0, 1, 20.0, 2.0)]
    assert stops.deadline().ordered(a.Kill) == [a.Kill(0, 1)]
    stops.member(e.MoreTimeAsked, 0, 1e9)
    assert not stops.actions, "a kill waits for nobody"


def test_main_that_is_gone_has_nothing_to_be_late_with():
    stops = Driver(STOPS).start().ready().stop().member(e.MainExited, 0, 0)
    assert not stops.member(e.MoreTimeAsked, 0, 15.0).actions


def test_what_a_stop_was_given_is_known_to_the_next_daemon():
    stops = Driver(STOPS).start().ready().stop().member(e.MoreTimeAsked, 0, 25.0)
    stops.reload().feed(e.DaemonRestarted(), after_s=5.0)
    assert stops.ordered(a.Stop) == [a.Stop(0, 1, 20.0, 2.0)]


@pytest.mark.parametrize("ready", [False, True])
def test_the_loss_of_a_peer_ends_a_life_and_is_charged_to_nothing(ready):
    peer = Driver().start().born()
    if ready:
        peer.ready()
    lost = Reason(Cause.DEPENDENCY, "restarts because agg/a-0 did")
    peer.feed(e.PeerLost(0, lost))
    assert not peer.actions, "that was another life"
    peer.feed(e.PeerLost(1, lost))
    assert peer.ordered(a.Kill)
    peer.empty()
    assert (peer.phase, peer.state.incarnation) == (Phase.STARTING, 2)
    assert (peer.state.counters.row, peer.state.counters.weight) == (0, 0.0)


def test_a_stop_may_bring_its_own_drain_limit():
    ready = Driver().start().ready()
    ready.feed(e.StopRequested(9, drain_s=600.0))
    assert ready.ordered(a.Drain) == [a.Drain(0, 1, 600.0)]
    assert ready.state.deadline.at == ready.now + 600.0


def test_statement_27_a_gpu_taken_after_the_gate_costs_no_backoff_and_ends_in_gpu_busy():
    busy = "ValueError: Free memory on device cuda:0 (1/80 GiB) is less than desired GPU memory"
    taken = Driver(Policy(holds=(Hold.GPU,))).start()
    for life in range(1, 7):
        assert taken.cause is Cause.WAITING_GPU
        taken.feed(e.Cleared(Hold.GPU, life - 1)).born().end(1, tail=busy)
        assert taken.state.counters.row == 0
    assert (taken.phase, taken.cause) == (Phase.FAILED, Cause.GPU_BUSY)
