"""From what runs to what was asked for, a step at a time: what to do next, never what comes after.

A rollout has no program counter. Each replica has a task, and after every change of any replica
this module is asked anew what may be done now. So a daemon that dies in the middle loses nothing:
the next one has the tasks on disk, looks at the replicas, and asks again.

The order in which things become possible:
1. New replicas start as soon as nobody holds their GPUs.
2. In each role one replica at a time gets its new life: the next one's turn comes when the role is
   whole again. Who doesn't serve anyway needn't wait. Roles wait for those they depend on.
3. What is removed goes last, dependants first, when all else is in place.
Whoever sits on a GPU that something new needs makes way earlier. If a replica with its new
configuration fails for good, everything stops: those that still have the old one keep it.
"""

import enum
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from orchestrator.core import fleet
from orchestrator.core.state import Phase, State, Want
from orchestrator.wire.ids import ReplicaId

AT_END = frozenset({Phase.STOPPED, Phase.COMPLETED, Phase.FAILED})
"""Phases in which no process exists and none is about to."""


class Task(enum.Enum):
    """What has still to happen to a replica."""

    NONE = "none"
    COME = "come"  # it is new, and was not asked to start yet
    RENEW = "renew"  # it runs an old configuration, and its turn has not come
    RENEWING = "renewing"  # it was told; its new life has not begun
    LEAVE = "leave"  # it is not wanted any more


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One replica, as a rollout sees it.

    `fresh`: this rollout gave it its present configuration. `holds`: GPUs it has for itself;
    `wants`: those of its next life. `after`: roles that are renewed before its own. `spare`: it
    only stands in while its role is renewed. `parked`: stopped until its new GPUs are free.
    `told`: a leaving one was told already.
    """

    replica: ReplicaId
    state: State
    task: Task = Task.NONE
    fresh: bool = False
    holds: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    needs: tuple[fleet.Need, ...] = ()
    spare: bool = False
    parked: bool = False
    told: bool = False

    @property
    def at_end(self) -> bool:
        """It has no process, and none is about to be started."""
        return self.state.phase in AT_END

    @property
    def failed(self) -> bool:
        """Its new configuration doesn't work."""
        ended = self.state.phase is Phase.FAILED and self.state.want is Want.UP
        return ended and self.fresh and self.task is Task.NONE

    @property
    def pending(self) -> bool:
        """It is on its way to serve; its role isn't whole without it."""
        if self.task in {Task.COME, Task.RENEWING}:
            return True
        up = self.state.want is Want.UP
        return self.task is Task.NONE and up and self.state.phase not in AT_END | {Phase.READY}


Do = Literal["start", "renew", "park", "stop", "swap", "remove", "retire"]


class Move(msgspec.Struct, frozen=True):
    """One thing to do now.

    start: its first life, or its next one after it was parked. renew: drain, stop, start. park:
    drain and stop. stop: likewise, for good. swap: give it its new configuration, it stays at
    rest. remove: forget it. retire: a spare one has done its work, and leaves.
    """

    do: Do
    replica: ReplicaId


class Decision(msgspec.Struct, frozen=True):
    """What may be done now. `over`: nothing is left to do or to wait for."""

    moves: tuple[Move, ...]
    over: bool


def failure(parts: Iterable[Part]) -> Part | None:
    """The replica whose new configuration failed for good; None while all is well."""
    return next((part for part in parts if part.failed), None)


def decide(parts: Sequence[Part], *, halted: bool, answering: bool = True) -> Decision:
    """Say what may be done now. `halted`: only what was begun is brought to its end.

    `answering`: the frontends know all that is ready. Else who serves goes on serving.
    """
    moves = [_move("remove", each) for each in parts if each.task is Task.LEAVE and each.at_end]
    if halted:
        moves += [_move("retire", each) for each in parts if _is_dispensable(each, parts)]
        return Decision(tuple(moves), over=False)
    forward = _starts(parts) + _renewals(parts, answering=answering)
    moves += dict.fromkeys(forward)  # a GPU's holder may have been named twice
    named = {move.replica for move in moves}
    if answering:
        moves += [move for move in _retirements(parts) if move.replica not in named]
    if answering and not forward:
        moves += _departures(parts)
    busy = any(each.task is not Task.NONE or each.spare for each in parts)
    unsettled = any(each.fresh and each.pending for each in parts)
    return Decision(tuple(moves), over=not (moves or busy or unsettled))


def _move(do: Do, part: Part) -> Move:
    return Move(do, part.replica)


def _in_the_way(part: Part, parts: Sequence[Part]) -> list[Part]:
    """Who has GPUs that this one's next life needs."""
    return [
        other
        for other in parts
        if other is not part and not other.at_end and other.holds & part.wants
    ]


def _starts(parts: Sequence[Part]) -> list[Move]:
    """Start what is new or parked, or clear its way."""
    moves: list[Move] = []
    for part in parts:
        parked = part.task is Task.RENEWING and part.parked and part.at_end
        if part.task is not Task.COME and not parked:
            continue
        others = _in_the_way(part, parts)
        if not others:
            moves.append(_move("start", part))
        for other in others:
            if other.task is Task.RENEW:
                moves.append(_renewal(other, parts))
            elif other.task is Task.LEAVE and not other.told:
                moves.append(_move("stop", other))
    return moves


def _renewals(parts: Sequence[Part], *, answering: bool) -> list[Move]:
    """In each role whose turn it is: those that don't serve, or else the next one."""
    moves: list[Move] = []
    open_ = {part.replica.role for part in parts if part.task is not Task.LEAVE and _open(part)}
    for role in dict.fromkeys(part.replica.role for part in parts if part.task is Task.RENEW):
        own = [part for part in parts if part.replica.role == role]
        due = [part for part in own if part.task is Task.RENEW]
        if any(part.after & (open_ - {role}) for part in due):
            continue
        moves += [_move("swap", part) for part in due if _rests(part)]
        wanted = [part for part in due if part.state.want is Want.UP]
        idle = [part for part in wanted if part.state.phase is not Phase.READY]
        if idle:
            moves += [_renewal(part, parts) for part in idle]
        elif wanted and answering and not any(part.pending for part in own):
            moves.append(_renewal(wanted[0], parts))
    return moves


def _open(part: Part) -> bool:
    """Its role isn't done yet."""
    return part.task in {Task.COME, Task.RENEW, Task.RENEWING} or (part.fresh and part.pending)


def _rests(part: Part) -> bool:
    return part.at_end and part.state.want is Want.DOWN


def _renewal(part: Part, parts: Sequence[Part]) -> Move:
    return _move("park" if _in_the_way(part, parts) else "renew", part)


def _retirements(parts: Sequence[Part]) -> list[Move]:
    """Let spare ones go whose role is whole again."""
    return [
        _move("retire", part)
        for part in parts
        if part.spare and part.task is Task.NONE and _is_dispensable(part, parts)
        and not any(_open(other) for other in parts if other.replica.role == part.replica.role)
    ]  # fmt: skip


def _is_dispensable(part: Part, parts: Sequence[Part]) -> bool:
    """A spare one, and its role can do without it."""
    return part.spare and part.task is not Task.LEAVE and any(
        other.replica.role == part.replica.role and not other.spare
        and other.state.phase in {Phase.READY, Phase.STOPPED}
        for other in parts
    )  # fmt: skip


def _departures(parts: Sequence[Part]) -> list[Move]:
    """Stop what is to leave, level by level, once all else is in place."""
    if any(_open(part) for part in parts):
        return []
    leaving = {part.replica: part for part in parts if part.task is Task.LEAVE and not part.at_end}
    levels = fleet.stop_levels(list(leaving), {each: leaving[each].needs for each in leaving})
    return [
        _move("stop", leaving[replica])
        for replica in (levels[0] if levels else ())
        if not leaving[replica].told
    ]
