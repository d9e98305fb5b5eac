"""One engine that blocks are read from: the handshake, and one connection for all reads."""

import asyncio
import contextlib

from workers.sim import side_channel as wire
from workers.sim.blocks import Block

HANDSHAKE_S = 5.0
"""How long vLLM waits for an engine that it doesn't know yet to say who it is."""
RETRY_S = 0.1
_LOOPBACK = {wire.HOST, "localhost"}


class TransferError(Exception):
    """Blocks can't be had; `kind` as vLLM logs it."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


class Peer:
    """A connection after the handshake. `lost`: the engine is gone for good."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lost = False
        self._writer = writer
        self._reads: dict[int, asyncio.Future[list[list[int]]]] = {}
        self._count = 0
        self._task = asyncio.create_task(self._listen(reader))

    async def read(self, blocks: list[int], seconds: float) -> list[Block]:
        """Read blocks. TransferError: there are no such, or the engine went away meanwhile."""
        self._raise_if_lost()
        self._count += 1
        number = self._count
        future = self._reads[number] = asyncio.get_running_loop().create_future()
        wire.say(self._writer, wire.Read(number, blocks, seconds))
        try:
            return list(await future)
        finally:
            del self._reads[number]

    def note(self, note: wire.Done | wire.Beat) -> None:
        """Send a note. TransferError: to nobody."""
        self._raise_if_lost()
        wire.say(self._writer, note)

    def close(self) -> None:
        """Hang up."""
        self._task.cancel()
        self._writer.close()

    def _raise_if_lost(self) -> None:
        if self.lost:
            raise TransferError("transfer_failed", "the remote engine is gone")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (message := await wire.hear(reader, wire.to_reader)) is not None:
            future = None if isinstance(message, wire.Agent) else self._reads.get(message.number)
            if future is None or future.done():
                continue
            if isinstance(message, wire.Content):
                future.set_result(message.blocks)
            elif isinstance(message, wire.Refused):
                future.set_exception(TransferError("transfer_setup_failed", message.why))
        self.lost = True
        self._writer.close()
        for future in self._reads.values():
            if not future.done():
                future.set_exception(TransferError("transfer_failed", "the connection broke"))


async def shake_hands(host: str, port: int, engine: str, compatibility: str) -> Peer:
    """Connect to an engine, which must be this one. TransferError: it isn't, or doesn't answer."""
    kind = "handshake_failed"
    if host not in _LOOPBACK:
        raise TransferError(kind, f"{host} is another machine; the simulator stays on this one")
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            reader, writer, agent = await _meet(port)
    except TimeoutError:
        raise TransferError(kind, f"no answer from tcp://{host}:{port}") from None
    if agent.compatibility != compatibility:
        writer.close()
        raise TransferError(
            kind,
            f"NIXL compatibility hash mismatch. Local: {compatibility}, "
            f"Remote: {agent.compatibility}.",
        )
    if agent.engine != engine:
        writer.close()
        raise TransferError(
            kind,
            f"Remote NIXL agent engine ID mismatch. Expected {engine},received {agent.engine}.",
        )
    return Peer(reader, writer)


async def _meet(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, wire.Agent]:
    """Try until somebody says who it is: as a ZeroMQ socket, which connects again by itself."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(wire.HOST, port)
            try:
                wire.say(writer, wire.Hello())
                agent = await wire.hear(reader, wire.to_reader)
            except asyncio.CancelledError:
                writer.close()
                raise
            if isinstance(agent, wire.Agent):
                return reader, writer, agent
            writer.close()
        await asyncio.sleep(RETRY_S)
