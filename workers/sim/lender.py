"""The prefill side: keeps the blocks of prompts that another engine will read, until it has.

A request's blocks are kept until a note comes, or until its lease ends; beats from an engine where
the request still waits extend the lease. Then they are anybody's, and who reads them later reads
what is in them by then. As with vLLM nobody checks that: only a note that comes too late is logged.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from workers.sim import side_channel as wire
from workers.sim.blocks import Blocks
from workers.sim.faults import Faults
from workers.sim.transfer_figures import TransferFigures

log = logging.getLogger("dynorch.sim")

EXTENSION = 2 / 3
"""How much of a lease a beat gives, from now on; so vLLM does it."""


class Pins:
    """Blocks that are kept, by request. Time is an argument."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._kept: dict[str, tuple[list[int], float]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, request: str) -> bool:
        return request in self._kept

    def keep(self, request: str, taken: list[int], now: float) -> None:
        """Begin a lease."""
        self._kept[request] = (taken, now + self._lease_s)

    def extend(self, request: str, now: float) -> None:
        """Extend a lease that hasn't ended."""
        if request in self._kept:
            taken, ends = self._kept[request]
            self._kept[request] = (taken, max(ends, now + self._lease_s * EXTENSION))

    def end(self, request: str) -> list[int]:
        """End a lease, and have its blocks."""
        return self._kept.pop(request)[0]

    def expired(self, now: float) -> list[str]:
        """Name the requests whose leases have ended."""
        return [request for request, (_taken, ends) in self._kept.items() if ends <= now]

    def next_end(self) -> float | None:
        """When the next lease ends, unless it is extended."""
        return min((ends for _taken, ends in self._kept.values()), default=None)


class Lender:
    """Serves readers. `freed()` is called when blocks were given back; `empty`: none are kept."""

    def __init__(
        self, agent: wire.Agent, blocks: Blocks, lease_s: float, figures: TransferFigures
    ) -> None:
        self._agent = agent
        self._blocks = blocks
        self._pins = Pins(lease_s)
        self._figures = figures
        self._timer: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._readers: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self.port = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self.faults: Faults | None = None
        self.freed: Callable[[], None] = lambda: None

    async def listen(self, port: int) -> None:
        """Serve readers at this port, 0 for any. OSError: it is taken."""
        self._server = await asyncio.start_server(self._serve, wire.HOST, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop; whoever reads is cut off."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for writer in self._readers:
            writer.close()
        await asyncio.gather(*filter(None, self._readers.values()))

    def keep(self, request: str, taken: list[int]) -> None:
        """Keep a request's blocks, for the time of a lease."""
        self._pins.keep(request, taken, asyncio.get_running_loop().time())
        self.empty.clear()
        self._arm()

    def _arm(self) -> None:
        """Look again when the next lease ends; the timer is never later than that."""
        ends = self._pins.next_end()
        if ends is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(ends, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for request in self._pins.expired(asyncio.get_running_loop().time()):
            log.warning(
                "Releasing expired KV blocks for request %s which were retrieved by 0 remote"
                " worker(s) before lease expired.",
                request,
            )
            self._figures.expired()
            self._free(request)
        self._arm()

    def _free(self, request: str) -> None:
        self._blocks.give_back(self._pins.end(request))
        if not self._pins:
            self.empty.set()
        self.freed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one reader until it is gone."""
        self._readers[writer] = asyncio.current_task()
        while (message := await wire.hear(reader, wire.to_lender)) is not None:
            match message:
                case wire.Hello():
                    wire.say(writer, self._agent)
                case wire.Read():
                    self._read(message, writer)
                case wire.Done():
                    self._done(message.request)
                case wire.Beat():
                    now = asyncio.get_running_loop().time()
                    for request in message.requests:
                        self._pins.extend(request, now)
        del self._readers[writer]
        writer.close()

    def _read(self, read: wire.Read, writer: asyncio.StreamWriter) -> None:
        fate = self.faults.on_transfer() if self.faults is not None else ""
        if fate == "fail":
            wire.say(writer, wire.Refused(read.number, "it was told to fail"))
        elif not fate:
            loop = asyncio.get_running_loop()
            loop.call_later(read.seconds, partial(self._answer, read, writer))

    def _answer(self, read: wire.Read, writer: asyncio.StreamWriter) -> None:
        """Send what is in the blocks at the end of the read, whosever they are by then."""
        try:
            contents = [list(content) for content in self._blocks.contents(read.blocks)]
        except IndexError as error:
            wire.say(writer, wire.Refused(read.number, str(error)))
        else:
            wire.say(writer, wire.Content(read.number, contents))

    def _done(self, request: str) -> None:
        if request in self._pins:
            self._free(request)
            return
        self._figures.late()
        log.error(
            "Potentially invalid KV blocks for unrecognized request %s were retrieved by a decode"
            " worker. They may have expired.",
            request,
        )
