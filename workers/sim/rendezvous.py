"""How the simulated ranks of a gang find each other, and what they do when one is gone.

Like real ranks: member 0 listens on the gang's port, the others connect to it, and nobody goes on
before all are there. From then on they say to each other, in words, when to step (see `lockstep`),
and every step is taken together, so a lost peer makes the rest hang: they don't exit, they go on
beating, and they make no step any more. That somebody has to end them is what the daemon is for,
and what this module lets a laptop show.

The port is on the loopback interface and nothing secret is said on it: a connection names its life,
and one of another gang or of an earlier incarnation is closed.
"""

import asyncio
import contextlib
from collections.abc import Callable

from orchestrator.wire.config import Gang
from orchestrator.wire.ids import LifeId
from workers.runtime.engine import EngineStartError, Report

RETRY_S = 0.05
"""Between two tries to reach member 0, which may not listen yet. The start's deadline ends them."""
GREETING_S = 10.0
LINE_MAX = 256
GO = b"go\n"


class Rendezvous:
    """One member's connections to its gang.

    `on_lost()` is called once, when a peer is gone; `on_word(member, word)` for what peers say.
    """

    def __init__(
        self,
        life: LifeId,
        gang: Gang,
        on_lost: Callable[[], None],
        on_word: Callable[[int, str], None],
    ) -> None:
        self._life = life
        self._gang = gang
        self._on_lost = on_lost
        self._on_word = on_word
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._came = asyncio.Event()
        self._complete = False
        self._over = False
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    async def meet(self, report: Report) -> None:
        """Return when all members are connected; never, where one doesn't come.

        EngineStartError: member 0 can't listen on the port.
        """
        if self._gang.member == 0:
            await self._gather(report)
        else:
            report("waits for the first rank of its gang", None)
            await self._join()

    def send(self, member: int, word: str) -> None:
        """Say a word to another member: to any of them from member 0, to member 0 from the rest."""
        if not self._over:
            self._peers[member].write(f"{word}\n".encode())

    def close(self) -> None:
        """Leave. For the others this member is lost."""
        self._over = True
        if self._server is not None:
            self._server.close()
        if self._watch is not None:
            self._watch.cancel()
        for peer in self._peers.values():
            peer.close()

    # ---- member 0 ----------------------------------------------------------------------------

    async def _gather(self, report: Report) -> None:
        gang = self._gang
        try:
            self._server = await asyncio.start_server(
                self._greeted, gang.host, gang.port, limit=LINE_MAX, backlog=gang.size
            )
        except OSError as error:
            text = f"rendezvous port {gang.port}: {error.strerror or error}"
            raise EngineStartError(text) from error
        while (here := len(self._peers) + 1) < gang.size:
            report(f"{here} of {gang.size} ranks are here", 100.0 * here / gang.size)
            self._came.clear()
            await self._came.wait()
        self._complete = True
        for peer in self._peers.values():
            peer.write(GO)

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        member = await self._who(reader)
        if member is None or member in self._peers or self._over:
            writer.close()
            return
        self._peers[member] = writer
        self._came.set()
        await self._listen(member, reader)
        if self._complete:
            self._lost()
        else:
            del self._peers[member]

    async def _who(self, reader: asyncio.StreamReader) -> int | None:
        """Whose connection it is; None when it isn't one of this gang's in this life."""
        try:
            line = await asyncio.wait_for(reader.readline(), GREETING_S)
            life = LifeId.parse(line.decode().strip())
        except (ValueError, OSError, TimeoutError):
            return None
        same = (life.of, life.incarnation) == (self._life.of, self._life.incarnation)
        return life.member if same and 0 < life.member < self._gang.size else None

    # ---- the others --------------------------------------------------------------------------

    async def _join(self) -> None:
        gang = self._gang
        while True:
            try:
                reader, writer = await asyncio.open_connection(gang.host, gang.port, limit=LINE_MAX)
                break
            except OSError:
                await asyncio.sleep(RETRY_S)
        self._peers[0] = writer
        writer.write(f"{self._life}\n".encode())
        with contextlib.suppress(OSError):
            if await reader.readline() == GO:
                self._watch = asyncio.create_task(self._until_lost(reader))
                return
        await asyncio.Event().wait()  # member 0 is gone; a collective would hang here, too

    async def _until_lost(self, reader: asyncio.StreamReader) -> None:
        await self._listen(0, reader)
        self._lost()

    async def _listen(self, member: int, reader: asyncio.StreamReader) -> None:
        """Pass on what a peer says, until it is gone or talks nonsense."""
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                self._on_word(member, line.decode().strip())

    def _lost(self) -> None:
        """Hang, and with member 0 gone or told, so does everybody."""
        if self._over:
            return
        self.close()
        self._on_lost()
