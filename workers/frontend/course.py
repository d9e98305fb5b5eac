"""A request's course across workers: what follows when a stage of it ends. Pure.

Theory of operation. A request that is split asks prefill for a ticket and decode for the answer;
one that isn't asks whoever serves its model, alone. Until the client has seen a byte, whatever
happens in a stage becomes one of nine events, and one table says where the course goes from there.
Two things bound it. Each worker that had begun when it failed may have died of this very request,
and sending it on endangers the next: `retries` says how often. And a worker that failed isn't
asked again; so a course always ends.

Decode needs its ticket once. If it had begun, the ticket is spent, and the way leads back to
prefill. A 5xx of decode may be its own trouble or a transfer's: vLLM answers both alike, so the
two stages are made again, once, on others if there are any.

Without a ticket decode can still do all the work, as an aggregated worker would. That is degraded
(its other requests pay for it), so it is counted and said; `enforce` forbids it.
"""

import enum
from typing import NamedTuple

import msgspec

from workers.frontend.retries import RULES, Failure


class Stage(enum.Enum):
    """Who has the request."""

    PREFILL = "prefill"
    DECODE = "decode"
    ALONE = "alone"


class Event(enum.Enum):
    """How a stage ended before the client saw a byte."""

    TICKETED = "prefill gave a ticket"
    BARE = "prefill gave no ticket that can be used"
    REFUSED = "prefill refused the request with a 4xx"
    BROKEN = "the worker answered with an error of its own"
    FAILED = "the worker failed after it had begun"
    UNSTARTED = "the worker never began"
    VOID = "the ticket can't be used any more"
    NOBODY = "no worker is left to ask"
    HOPELESS = "no worker would do better"


class Move(enum.Enum):
    """What to do next. END: answer with what the last attempt came to."""

    PREFILL = "ask a prefill worker"
    DECODE = "give decode the ticket"
    ALONE = "ask a worker without a ticket"
    WAIT = "wait for a worker that is on its way back"
    END = "answer with what happened"


class Row(NamedTuple):
    """What follows. An event with a move for the `exhausted` costs one of the retries."""

    move: Move
    exhausted: Move | None = None


IMPOSSIBLE = None
TABLE: dict[Stage, dict[Event, Row | None]] = {
    Stage.PREFILL: {
        Event.TICKETED: Row(Move.DECODE),
        Event.BARE: Row(Move.PREFILL, exhausted=Move.ALONE),
        # Decode says what is wrong with the request in the words that an aggregated worker has.
        Event.REFUSED: Row(Move.ALONE),
        Event.BROKEN: Row(Move.PREFILL, exhausted=Move.ALONE),
        Event.FAILED: Row(Move.PREFILL, exhausted=Move.END),
        Event.UNSTARTED: Row(Move.PREFILL),
        Event.VOID: IMPOSSIBLE,
        Event.NOBODY: Row(Move.ALONE),
        Event.HOPELESS: Row(Move.END),
    },
    Stage.DECODE: {
        Event.TICKETED: IMPOSSIBLE,
        Event.BARE: IMPOSSIBLE,
        Event.REFUSED: IMPOSSIBLE,
        Event.BROKEN: Row(Move.PREFILL, exhausted=Move.END),
        Event.FAILED: Row(Move.PREFILL, exhausted=Move.END),
        Event.UNSTARTED: Row(Move.DECODE),
        Event.VOID: Row(Move.PREFILL, exhausted=Move.ALONE),
        Event.NOBODY: Row(Move.WAIT),
        Event.HOPELESS: Row(Move.END),
    },
    Stage.ALONE: {
        Event.TICKETED: IMPOSSIBLE,
        Event.BARE: IMPOSSIBLE,
        Event.REFUSED: IMPOSSIBLE,
        Event.BROKEN: Row(Move.END),
        Event.FAILED: Row(Move.ALONE, exhausted=Move.END),
        Event.UNSTARTED: Row(Move.ALONE),
        Event.VOID: IMPOSSIBLE,
        Event.NOBODY: Row(Move.WAIT),
        Event.HOPELESS: Row(Move.END),
    },
}
assert all(set(TABLE[stage]) == set(Event) for stage in Stage), "every event in every stage"

_BECOMES = {Move.PREFILL: Stage.PREFILL, Move.DECODE: Stage.DECODE, Move.ALONE: Stage.ALONE}
_ENFORCED = {Event.NOBODY: Move.WAIT}
"""What `enforce` makes of ALONE; in all other cases it is the end."""


def event_of(failure: Failure) -> Event:
    """Return what an attempt's failure is to the course."""
    if failure is Failure.APP_ERROR:
        return Event.BROKEN
    if failure is Failure.LATE:
        return Event.VOID
    rule = RULES[failure]
    if not rule.elsewhere:
        return Event.HOPELESS
    return Event.FAILED if rule.costs else Event.UNSTARTED


class Step(NamedTuple):
    """What to do next, and why."""

    move: Move
    reason: str


class Course(msgspec.Struct):
    """One request. `spent`: retries used; `redone`: both stages were made again for a 5xx."""

    stage: Stage
    retries: int
    enforce: bool = False
    spent: int = 0
    redone: bool = False

    def step(self, event: Event, what: str = "", *, others: bool = True) -> Step:
        """Decide. `what` happened, in words; `others`: whether there is another worker to ask.

        Nobody else to ask matters where the request would go to one of the same kind; after a
        failure in prefill there is decode.
        """
        row = TABLE[self.stage][event]
        assert row is not None, (self.stage, event)
        move, reason = row.move, what or event.value
        if not others and self.stage is not Stage.PREFILL and move in _BECOMES:
            move, reason = Move.END, f"{reason}, and no other serves this model"
        elif row.exhausted is not None:
            if self._used_up(event):
                move, reason = row.exhausted, f"{reason}, and {self._limit(event)}"
            else:
                self.spent += 1
                self.redone |= event is Event.BROKEN and self.stage is Stage.DECODE
        if move is Move.ALONE and self.enforce and self.stage is not Stage.ALONE:
            move = _ENFORCED.get(event, Move.END)
        self.stage = _BECOMES.get(move, self.stage)
        return Step(move, reason)

    def _used_up(self, event: Event) -> bool:
        if event is Event.BROKEN and self.stage is Stage.DECODE and self.redone:
            return True
        return self.spent >= self.retries

    def _limit(self, event: Event) -> str:
        if event is Event.BROKEN and self.redone and self.spent < self.retries:
            return "it was made again once"
        return f"{self.retries} retries are used up"
