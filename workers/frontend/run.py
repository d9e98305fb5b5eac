"""One request under way: what was asked, where its course stands, and whom it has been to."""

import asyncio
from typing import NamedTuple

from workers.frontend import stages
from workers.frontend.client import Client
from workers.frontend.course import Course, Event, Stage
from workers.frontend.exchange import Exchange
from workers.frontend.intake import Ask, Fields
from workers.frontend.link import Link
from workers.frontend.prefix import Chain
from workers.frontend.retries import CRASHED, LEAVING, Failure
from workers.frontend.tickets import Ticket

FAR_PAST = float("-inf")


class Attempt(NamedTuple):
    """One try of one stage on one worker."""

    link: Link
    exchange: Exchange


class Ended(NamedTuple):
    """How a stage ended before the client saw a byte. `attempt`: if anybody was asked."""

    event: Event
    failure: Failure | None = None
    attempt: Attempt | None = None
    text: str = ""


class Run:
    """`tried`: who isn't asked again; `avoided`: who is only if there is nobody else.

    `splittable`: it may go through two stages. `trouble`: the last that it had on that way, in a
    word or two; `degraded`: why it left it. `left_at`: when a worker refused it because it leaves;
    `crash`: how one ended with it, at `crashed_at`, the last of so many `crashes`.
    """

    splittable = False
    beginnings: Chain = ()
    digest = b""
    ticket: Ticket | None = None
    trouble = degraded = ""
    deadline: float | None = None
    until = 0.0
    left_at = crashed_at = FAR_PAST
    crash: Ended | None = None
    crashes = 0
    avoided: frozenset[str] = frozenset()

    def __init__(
        self, ask: Ask, fields: Fields | None, model: str, client: Client, course: Course
    ) -> None:
        self.ask = ask
        self.fields = fields
        self.model = model
        self.client = client
        self.course = course
        self.tried: set[str] = set()

    def prepare(self) -> None:
        """Find out whether it can be split, and what its ticket must be bound to."""
        self.splittable = not stages.whole(self.ask, self.fields)
        if self.splittable:
            self.digest = stages.digest(self.ask)

    def note(self, ended: Ended) -> None:
        """Keep what the end of a stage says about whom to ask next."""
        if ended.failure in LEAVING:
            self.left_at = asyncio.get_running_loop().time()
        elif ended.failure in CRASHED:
            self.crashed_at = asyncio.get_running_loop().time()
            self.crash, self.crashes = ended, self.crashes + 1
        attempt, stage = ended.attempt, self.course.stage
        if attempt is None or stage is Stage.ALONE:
            return
        life = attempt.link.life
        if ended.event is Event.TICKETED:
            # Should its ticket be wasted, it is as good as any to make another.
            self._avoid(life)
        elif ended.event is Event.UNSTARTED and stage is Stage.DECODE:
            assert self.ticket is not None
            self.ticket.give_back()
        elif ended.event in {Event.BROKEN, Event.VOID} and stage is Stage.DECODE:
            # It may have been the transfer, or the ticket's age, not this worker.
            self._avoid(life)

    def _avoid(self, life: str) -> None:
        self.tried.discard(life)
        self.avoided |= {life}
