"""Plausible mistakes in the machine of one replica, in budgets, and in what a new daemon does."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from msgspec.structs import replace

from orchestrator.core import actions as a
from orchestrator.core import adopt, cells, facts, moves, replica, restart
from orchestrator.core import events as e
from orchestrator.core.state import Counters, Phase, Stage, Want
from tests.sim.planting import in_cell, instead_of, mutant, without

# ---- the gate ----------------------------------------------------------------------------------


@mutant
def no_incarnation_gate():
    def make(right):
        def mutated(state, event):
            if hasattr(event, "member") and state.members:
                event = replace(event, incarnation=state.incarnation)
            return right(state, event)

        return mutated

    return instead_of(replica, "is_outdated", make)


@mutant
def no_serial_gate():
    def make(right):
        return lambda state, event: (
            state.deadline is None if isinstance(event, e.DeadlineReached) else right(state, event)
        )

    return instead_of(replica, "is_outdated", make)


@mutant
def no_intent_gate():
    def make(right):
        return lambda state, event: not isinstance(event, e.Request) and right(state, event)

    return instead_of(replica, "is_outdated", make)


# ---- lives -------------------------------------------------------------------------------------


@mutant
def restart_before_the_gang_is_gone():
    def mutated(state, actions, now, policy):
        if not any(member.stage is Stage.EMPTY for member in state.members):
            return state, actions
        state, more = moves.conclude(state, now, policy)
        return state, actions + more

    return mock.patch.object(moves, "conclude_if_empty", mutated)


@mutant
def restart_when_main_is_gone():
    def mutated(state, event, now, policy):
        state = facts.empty(state, event.member)
        return moves.conclude_if_empty(state, (), now, policy)

    return in_cell(Phase.STOPPING, e.MainExited, mutated)


@mutant
def incarnation_not_bumped():
    def make(right):
        def mutated(state, now, policy):
            if state.incarnation > 1:
                state = replace(state, incarnation=state.incarnation - 1)
            return right(state, now, policy)

        return mutated

    return instead_of(moves, "launch", make)


@mutant
def peers_of_the_dead_live_on():
    def mutated(state, reason, now, policy):
        state = moves.enter(state, Phase.STOPPING, reason, now)
        state, armed = moves.arm(state, moves.Await.KILL, now + policy.stop.kill_timeout_s)
        gone = {Stage.EXITED, Stage.EMPTY}
        members = tuple(
            replace(m, stage=m.stage if m.stage in gone else Stage.EMPTY) for m in state.members
        )
        state = replace(state, members=members)
        return moves.conclude_if_empty(state, armed + moves.kills(state), now, policy)

    return mock.patch.object(moves, "kill", mutated)


@mutant
def born_unwanted_and_kept():
    return in_cell(Phase.STOPPING, e.Spawned, without(a.Kill)(cells.kill_at_birth))


@mutant
def unkillable_goes_unsaid():
    return mock.patch.object(cells, "stuck", lambda state, who: state)


# ---- readiness ---------------------------------------------------------------------------------


@mutant
def stays_routable_after_exit():
    def mutated(state, event, now, policy):
        return facts.exited(state, event.member), ()

    return in_cell(Phase.READY, e.MainExited, mutated)


@mutant
def ready_with_all_but_one():
    def mutated(state, now, policy):
        waits = [
            member
            for member in state.members
            if member.stage is not Stage.RUNNING or (policy.has_readiness and not member.ready)
        ]
        if len(waits) > (len(state.members) > 1):
            return state, ()
        state = replace(state, ready_at=now, counters=restart.after_ready(state.counters))
        return moves.disarm(moves.enter(state, Phase.READY, moves.READY, now))

    return mock.patch.object(moves, "ready_if_all_are", mutated)


@mutant
def late_ready_cancels_a_stop():
    def mutated(state, event, now, policy):
        return moves.disarm(moves.enter(state, Phase.READY, moves.READY, now))

    @contextmanager
    def planted() -> Iterator[None]:
        ignored = replica.IGNORED - {(Phase.STOPPING, e.BecameReady)}
        with (
            mock.patch.object(replica, "IGNORED", ignored),
            in_cell(Phase.STOPPING, e.BecameReady, mutated),
        ):
            yield

    return planted()


@mutant
def frozen_while_its_gang_starts():
    """The real one that the simulator found: a member freezes before its peers are ready."""

    def mutated(state, event, now, policy):
        return state, ()

    return in_cell(Phase.STARTING, e.LeaseMissed, mutated)


# ---- requests ----------------------------------------------------------------------------------


@mutant
def stop_ignored_in_backoff():
    return in_cell(Phase.WAITING, e.StopRequested, lambda state, *_: (state, ()))


@mutant
def stop_forgotten_while_stopping():
    return in_cell(Phase.STOPPING, e.StopRequested, lambda state, *_: (state, ()))


@mutant
def told_to_stop_twice():
    def mutated(state, event, now, policy):
        state, actions = cells.stop_stopping(state, event, now, policy)
        again = moves.orders(state, lambda index: a.Stop(index, state.incarnation, 60.0, 2.0))
        return state, actions + again

    return in_cell(Phase.STOPPING, e.StopRequested, mutated)


@mutant
def dependencies_checked_only_once():
    def make(right):
        def mutated(state, reason, delay_s, now, policy):
            if state.incarnation:
                policy = replace(policy, holds=())
            return right(state, reason, delay_s, now, policy)

        return mutated

    return instead_of(moves, "begin", make)


# ---- deadlines ---------------------------------------------------------------------------------


@mutant
def start_without_a_deadline():
    return instead_of(moves, "launch", without(a.ArmDeadline))


@mutant
def kill_without_a_deadline():
    return instead_of(moves, "kill", without(a.ArmDeadline))


@mutant
def deadline_left_armed_when_ready():
    return instead_of(moves, "ready_if_all_are", without(a.DisarmDeadline))


# ---- budgets -----------------------------------------------------------------------------------


@mutant
def backoff_does_not_grow():
    return mock.patch.object(restart, "backoff_s", return_value=1.0)


@mutant
def crashes_are_never_too_many():
    return instead_of(restart, "charge_run", lambda right: lambda *args: (right(*args)[0], None))


@mutant
def one_retry_too_many():
    def make(right):
        def mutated(counters, fault, policy):
            limit = policy.retries.start_crash + 1
            policy = replace(policy, retries=replace(policy.retries, start_crash=limit))
            return right(counters, fault, policy)

        return mutated

    return instead_of(restart, "charge_class", make)


@mutant
def the_row_never_ends():
    def make(right):
        def mutated(name, incarnation, counters, fault, policy):
            policy = replace(policy, backoff=replace(policy.backoff, reset_after_s=1e12))
            return right(name, incarnation, counters, fault, policy)

        return mutated

    return instead_of(restart, "judge", make)


@mutant
def exit_zero_is_always_success():
    return mock.patch.object(moves, "finishes", lambda fault, policy: fault.success)


@mutant
def the_last_failure_owns_the_class():
    def make(right):
        def mutated(state, index, found):
            if state.fault is not None and state.fault.exited:
                state = replace(state, fault=replace(state.fault, member=index))
            return right(state, index, found)

        return mutated

    return instead_of(cells, "sharpen", make)


# ---- a new daemon ------------------------------------------------------------------------------


@mutant
def counters_forgotten_by_the_next_daemon():
    def make(right):
        def mutated(saved, boot, found):
            state, events = right(saved, boot, found)
            return replace(state, counters=Counters()), events

        return mutated

    return instead_of(adopt, "adopt", make)


@mutant
def wish_lost_in_a_reboot():
    return instead_of(
        adopt, "after_reboot", lambda right: lambda state: replace(right(state), want=Want.DOWN)
    )


@mutant
def stop_not_repeated_by_the_next_daemon():
    return in_cell(Phase.STOPPING, e.DaemonRestarted, cells.resume)


@mutant
def deadline_not_armed_by_the_next_daemon():
    return in_cell(Phase.WAITING, e.DaemonRestarted, lambda state, *_: (state, ()))


@mutant
def unborn_charged_as_a_crash():
    def make(right):
        def mutated(state, event, now, policy):
            return right(state, replace(event, code=""), now, policy)

        return mutated

    return in_cell(Phase.STARTING, e.SpawnFailed, make(cells.fail_at_birth))
