"""Plausible mistakes between replicas: turns, GPUs, groups, long starts, and the loop itself."""

import asyncio
from unittest import mock

from msgspec.structs import replace

from orchestrator.core import cells, fleet, gate, groups, moves, restart
from orchestrator.core import events as e
from orchestrator.core.reasons import Cause
from orchestrator.core.state import Phase, Stage
from orchestrator.daemon import supervisor
from tests.sim.planting import in_cell, instead_of, mutant

# ---- holds, turns, GPUs ------------------------------------------------------------------------


@mutant
def nobody_waits_for_a_turn():
    return mock.patch.object(supervisor.Supervisor, "_note_turns")


@mutant
def a_turn_is_given_and_never_taken_back():
    def make(right):
        def mutated(self, unit):
            right(self, unit)
            self._births.clear()

        return mutated

    return instead_of(supervisor.Supervisor, "_note_turns", make)


@mutant
def one_sample_opens_the_gate():
    def make(right):
        def mutated(outcome, waiter, *rest):
            waiter = replace(waiter, policy=replace(waiter.policy, samples=1))
            return right(outcome, waiter, *rest)

        return mutated

    return instead_of(gate, "_measure", make)


@mutant
def births_on_one_card_at_the_same_time():
    return mock.patch.object(gate, "_rival", return_value=None)


@mutant
def a_cleared_hold_clears_them_all():
    def mutated(state, event, now, policy):
        return moves.wait(replace(state, holds={}), now, policy)

    return in_cell(Phase.WAITING, e.Cleared, mutated)


@mutant
def who_is_to_stop_before_its_birth_is_in_nobodys_way():
    return mock.patch.object(gate, "may_grow", lambda state: state.phase is Phase.STARTING)


@mutant
def giving_up_waiting_is_a_stop():
    def mutated(state, event, now, policy):
        return cells.rest(state, event, now, policy)

    return in_cell(Phase.WAITING, e.GaveUp, mutated)


# ---- groups and long starts --------------------------------------------------------------------


@mutant
def a_group_lets_its_peers_live():
    return mock.patch.object(groups, "losses", return_value=[])


@mutant
def a_ready_peer_lives_on():
    return in_cell(Phase.READY, e.PeerLost, lambda state, *_: (state, ()))


@mutant
def a_peers_loss_is_charged():
    free = restart.NOT_CHARGED - {Cause.PEER, Cause.DEPENDENCY}
    return mock.patch.object(restart, "NOT_CHARGED", free)


@mutant
def a_start_is_extended_without_end():
    def mutated(state, event, now, policy):
        return moves.arm(state, state.deadline.what, max(state.deadline.at, now + event.by_s))

    return in_cell(Phase.STARTING, e.MoreTimeAsked, mutated)


@mutant
def a_start_is_never_extended():
    return in_cell(Phase.STARTING, e.MoreTimeAsked, lambda state, *_: (state, ()))


@mutant
def a_stop_is_extended_without_end():
    def mutated(state, event, now, policy):
        at = max(state.deadline.at, now + event.by_s)
        state, armed = moves.arm(state, state.deadline.what, at)
        return state, armed + moves.stops(state, at - now, 2.0)

    return in_cell(Phase.STOPPING, e.MoreTimeAsked, mutated)


@mutant
def a_stop_is_never_extended():
    return in_cell(Phase.STOPPING, e.MoreTimeAsked, lambda state, *_: (state, ()))


@mutant
def what_is_only_to_be_born_counts_as_started():
    def make(right):
        def mutated(needs, states):
            return right(needs, {replica: as_if_born(state) for replica, state in states.items()})

        return mutated

    def as_if_born(state):
        members = (replace(member, stage=Stage.RUNNING) for member in state.members)
        return replace(state, members=tuple(members))

    return instead_of(fleet, "unmet", make)


# ---- the loop ----------------------------------------------------------------------------------


@mutant
def deadlines_are_not_replaced():
    def mutated(self, replica, serial, at):
        if replica not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[replica] = loop.call_at(at, self.post, replica, e.DeadlineReached(serial))

    return mock.patch.object(supervisor.Supervisor, "_arm", mutated)


@mutant
def exit_records_go_before_the_news_is_saved():
    def make(right):
        def mutated(self, replica, event, then=None):
            if then is not None:
                then()
            right(self, replica, event)

        return mutated

    return instead_of(supervisor.Supervisor, "post", make)


@mutant
def dependants_are_never_told():
    return mock.patch.object(supervisor.Supervisor, "tell_dependants")
