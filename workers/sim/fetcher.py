"""The decode side: fetches the blocks of prompts that another engine has prefilled.

One task per fetch, so that a client that leaves cancels it. While a request waits, its engine is
reminded to keep the blocks; when they are read, or nobody wants them any more, it is told. Whatever
fails is logged as vLLM does and ends in `done(sequence, None)`; what then happens isn't ours.
"""

import asyncio
import logging
from collections.abc import Callable

from workers.sim import side_channel as wire
from workers.sim.blocks import Block
from workers.sim.faults import Faults
from workers.sim.peer import Peer, TransferError, shake_hands
from workers.sim.sequence import Sequence
from workers.sim.ticket import MalformedError, Ticket, Wish
from workers.sim.transfer_figures import TransferFigures

log = logging.getLogger("dynorch.sim")

BEATS_A_LEASE = 6
PEERS_MAX = 1024
"""Engines that are remembered, dead ones included; then the oldest is forgotten."""

Done = Callable[[Sequence, list[Block] | None], None]


class Fetcher:
    """Reads blocks. `die(why)`: what vLLM's engine would not survive."""

    def __init__(
        self,
        agent: wire.Agent,
        lease_s: float,
        rate: float,
        figures: TransferFigures,
        die: Callable[[str], None],
    ) -> None:
        self._agent = agent
        self._period_s = lease_s / BEATS_A_LEASE
        self._rate = rate
        self._figures = figures
        self._die = die
        self._peers: dict[str, asyncio.Task[Peer]] = {}
        self._waiting: dict[Sequence, Ticket] = {}
        self._tasks: dict[Sequence, asyncio.Task[None]] = {}
        self._notes: set[asyncio.Task[None]] = set()
        self._beat: asyncio.TimerHandle | None = None
        self.faults: Faults | None = None
        self.done: Done = lambda _sequence, _contents: None

    def close(self) -> None:
        """Fetch no more."""
        if self._beat is not None:
            self._beat.cancel()
        for task in (*self._tasks.values(), *self._notes):
            task.cancel()
        for peer in self._peers.values():
            peer.cancel()
            if peer.done() and not peer.cancelled() and not peer.exception():
                peer.result().close()

    def wait(self, sequence: Sequence) -> None:
        """Remind its engine of this sequence, until it is fetched or dropped."""
        ticket = _ticket(sequence.wish)
        if ticket is not None:
            self._waiting[sequence] = ticket
            self._arm()

    def fetch(self, sequence: Sequence) -> None:
        """Begin to fetch, as many blocks as the sequence has: of more, the last ones."""
        assert sequence.wish is not None
        try:
            ticket = sequence.wish.ticket(len(sequence.blocks))
        except MalformedError as error:
            log.warning("EngineCore encountered a fatal error.\n%s", error)
            self._die(f"EngineCore encountered an issue: {error}")
            return
        if ticket is None:
            # vLLM says this, and then the request waits for a transfer that nobody begins.
            log.warning(
                "Got invalid KVTransferParams: %s. This request will not utilize KVTransfer",
                sequence.wish.params,
            )
            return
        self._tasks[sequence] = asyncio.create_task(self._fetch(sequence, ticket))

    def drop(self, sequence: Sequence) -> None:
        """Fetch it no more, and let its engine free the blocks."""
        self._waiting.pop(sequence, None)
        if sequence in self._tasks:
            self._tasks.pop(sequence).cancel()
        self.reject(sequence.wish)

    def reject(self, wish: Wish | None) -> None:
        """Let an engine free the blocks of a request that will never be fetched here."""
        ticket = _ticket(wish)
        if ticket is not None:
            task = asyncio.create_task(self._say_done(ticket))
            self._notes.add(task)
            task.add_done_callback(self._notes.discard)

    async def _fetch(self, sequence: Sequence, ticket: Ticket) -> None:
        contents = None
        try:
            contents = await self._read(ticket, sequence)
        except TransferError as error:
            log.warning(
                "NIXL transfer failure: %s | Context: {'request_id': %r, 'engine_id': %r,"
                " 'remote_engine_id': %r, 'remote_request_id': %r, 'remote_port': %r}: %s",
                error.kind, sequence.name, self._agent.engine, ticket.engine, ticket.request,
                ticket.port, error,
            )  # fmt: skip
            self._figures.failed()
        self._tasks.pop(sequence, None)
        self._waiting.pop(sequence, None)
        self.done(sequence, contents)

    async def _read(self, ticket: Ticket, sequence: Sequence) -> list[Block]:
        peer = await self._peer(ticket)
        fate = self.faults.on_transfer() if self.faults is not None else ""
        if fate == "stall":
            await asyncio.Event().wait()
        if fate == "fail":
            raise TransferError("transfer_failed", "it was told to fail")
        tokens = len(sequence.prompt)
        seconds = tokens / self._rate
        contents = await peer.read(ticket.blocks[-len(sequence.blocks) :], seconds)
        self._figures.transferred(tokens, seconds)
        await self._say_done(ticket)
        return contents

    async def _say_done(self, ticket: Ticket) -> None:
        try:
            (await self._peer(ticket)).note(wire.Done(ticket.request))
        except TransferError as error:
            log.warning(
                "NIXL transfer failure: notification_failed. P worker blocks will be freed after"
                " timeout. | Context: {'remote_request_id': %r}: %s",
                ticket.request, error,
            )  # fmt: skip
            self._figures.not_noted()

    async def _peer(self, ticket: Ticket) -> Peer:
        """Find the engine, after one handshake for all who want it. Who failed is asked again."""
        known = self._peers.get(ticket.engine)
        if known is not None and known.done() and (known.cancelled() or known.exception()):
            known = None
        if known is None:
            if len(self._peers) >= PEERS_MAX:
                self._forget(next(iter(self._peers)))
            shake = shake_hands(ticket.host, ticket.port, ticket.engine, self._agent.compatibility)
            known = self._peers[ticket.engine] = asyncio.create_task(shake)
        # Whoever leaves meanwhile takes the handshake from nobody.
        return await asyncio.shield(known)

    def _forget(self, engine: str) -> None:
        task = self._peers.pop(engine)
        if task.done() and not task.cancelled() and not task.exception():
            task.result().close()

    # ---- beats -------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._beat is None and self._waiting:
            self._beat = asyncio.get_running_loop().call_later(self._period_s, self._remind)

    def _remind(self) -> None:
        """Send one note to each engine that somebody waits for; to a stranger after a handshake."""
        self._beat = None
        for engine in {ticket.engine for ticket in self._waiting.values()}:
            tickets = [each for each in self._waiting.values() if each.engine == engine]
            task = asyncio.create_task(self._say_beat(tickets))
            self._notes.add(task)
            task.add_done_callback(self._notes.discard)
        self._arm()

    async def _say_beat(self, tickets: list[Ticket]) -> None:
        try:
            (await self._peer(tickets[0])).note(wire.Beat([each.request for each in tickets]))
        except TransferError as error:
            log.debug("Failed to send heartbeat to engine %s: %s", tickets[0].engine, error)


def _ticket(wish: Wish | None) -> Ticket | None:
    """Read a ticket where nobody may die of it."""
    try:
        return wish.ticket() if wish is not None and wish.fetches else None
    except MalformedError:
        return None
