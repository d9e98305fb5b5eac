"""The ports that we choose ourselves: one table per run directory, so no two of ours get the same.

A port is taken for an owner (one incarnation of one gang) and held: bound by the daemon, without
listening, from the moment it was found free until its owner is over. Whoever wants to bind it in
between fails, except the one it is for: the held socket has SO_REUSEADDR, and so has the listener
of every rendezvous. It has it only *after* its own bind, which therefore fails where anybody at all
has the port, and another daemon's held socket counts.

A released port rests for a minute: connections of the old life may still be timing out, and a peer
that hasn't heard of its end may still knock. Ports go round, so the next one is another one anyway.
They come from below the range that the kernel gives to clients, or else an outgoing connection
could take one. The table is a file: the next daemon knows what is taken and what rests.
"""

import errno
import socket
import time
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from orchestrator.host.ports import holder
from orchestrator.host.procfs import boot_id

REST_S = 60.0
SPAN = 4096
"""How many ports are ours to choose from."""
LOWEST = 10_000
HIGHEST = 65_535
KERNEL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoPortError(Exception):
    """No port is free; the text names who has the first that was tried."""


class Entry(msgspec.Struct, frozen=True):
    """One port. `rests_until`: monotonic seconds; None while its owner lives."""

    owner: str
    rests_until: float | None = None


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file. Times are of this boot; another boot's table means nothing."""

    boot: str
    ports: dict[int, Entry] = {}
    last: int = 0


def span() -> range:
    """Return the ports to choose from: below the kernel's own range, or above it, or anywhere."""
    try:
        low, high = map(int, KERNEL_RANGE.read_text().split())
    except (OSError, ValueError):
        low, high = 32_768, 60_999
    if low - SPAN >= LOWEST:
        return range(low - SPAN, low)
    if high + SPAN <= HIGHEST:
        return range(high + 1, high + 1 + SPAN)
    return range(LOWEST, LOWEST + SPAN)


class PortTable:
    """The table and the held sockets.

    `write(path, data)` replaces a file at once. `wanted()`: ports that topologies name; they are
    left alone also while nobody listens on them.
    """

    def __init__(
        self,
        path: Path,
        write: Callable[[Path, bytes], None],
        wanted: Callable[[], Collection[int]] = tuple,
        *,
        clock: Callable[[], float] = time.monotonic,
        ports: range | None = None,
    ) -> None:
        self._path = path
        self._write = write
        self._wanted = wanted
        self._clock = clock
        self._span = span() if ports is None else ports
        self._boot = boot_id()
        self._held: dict[str, socket.socket] = {}
        kept = self._read()
        self._ports = dict(kept.ports)
        # Two run directories begin in different places, and seldom meet.
        self._last = kept.last or self._span[zlib.crc32(bytes(path)) % len(self._span)]

    def of(self, owner: str) -> int | None:
        """Return the port that this owner has; None if it has none."""
        for port, entry in self._ports.items():
            if entry.owner == owner and entry.rests_until is None:
                return port
        return None

    def take(self, owner: str) -> int:
        """Return this owner's port, found free and held now unless it has one already.

        NoPortError: none is free.
        """
        port = self.of(owner)
        if port is not None:
            return port
        self._wake()
        refused, wanted = 0, self._wanted()
        for port in self._round():
            if port in self._ports or port in wanted:
                continue
            held = _bind(port)
            if held is not None:
                self._held[owner] = held
                self._ports[port] = Entry(owner)
                self._last = port
                self._save()
                return port
            refused = refused or port
        raise NoPortError(self._exhausted(refused))

    def release(self, owner: str) -> None:
        """Let this owner's port rest: no process of it is left."""
        port = self.of(owner)
        if port is None:
            return
        held = self._held.pop(owner, None)
        if held is not None:
            held.close()
        self._ports[port] = Entry(owner, self._clock() + REST_S)
        self._save()

    def keep(self, owners: Collection[str]) -> None:
        """Release what belongs to anybody else: their end was missed."""
        for entry in list(self._ports.values()):
            if entry.rests_until is None and entry.owner not in owners:
                self.release(entry.owner)

    def close(self) -> None:
        """Hold nothing any more; the table stays."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _wake(self) -> None:
        """Forget what has rested long enough, which also bounds the table."""
        now = self._clock()
        self._ports = {
            port: entry
            for port, entry in self._ports.items()
            if entry.rests_until is None or entry.rests_until > now
        }

    def _round(self) -> list[int]:
        """All ports, beginning behind the last one taken."""
        first = self._span.index(self._last) + 1 if self._last in self._span else 0
        return [*self._span[first:], *self._span[:first]]

    def _exhausted(self, refused: int) -> str:
        text = f"no free port from {self._span[0]} to {self._span[-1]}"
        if refused:
            who = holder(refused) or "a process that we may not see"
            text += f": {refused} is in use by {who}, and so on"
        return text

    def _read(self) -> Kept:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return Kept(boot=self._boot)
        return kept if kept.boot == self._boot else Kept(boot=self._boot)

    def _save(self) -> None:
        kept = Kept(boot=self._boot, ports=self._ports, last=self._last)
        try:
            self._write(self._path, msgspec.json.encode(kept))
        except OSError:
            return  # a full disk; every bind is tested, so the next daemon errs by a rest at most


def _bind(port: int) -> socket.socket | None:
    """Bind it as nobody else could, and hold it so that its listener can; None if it is taken."""
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.bind(("0.0.0.0", port))  # noqa: S104 - any listener is found, not served
    except OSError as error:
        held.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held
