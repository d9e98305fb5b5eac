"""The ports that we choose ourselves: one table per run directory, so no two of ours get the same.

A port, or several in a row, is taken for an owner (one incarnation of a gang, or a worker for all
its lives) and held: bound by the daemon, without listening, from the moment it was found free until
its owner is over. Whoever wants to bind it in between fails, except the one it is for: the held
socket has SO_REUSEADDR, and so has the listener of every rendezvous and side channel. It has it
only *after* its own bind, which therefore fails where anybody at all has the port, and another
daemon's held socket counts.

A worker keeps its ports from life to life. Before each life somebody looks whether a stranger
listens on one meanwhile, as anybody may who has SO_REUSEADDR too, or who came while there was no
daemon. Then the worker moves, and why is told.

A released port rests for a minute: connections of the old life may still be timing out, and a peer
that hasn't heard of its end may still knock. Ports go round, so the next one is another one anyway.
They come from below the range that the kernel gives to clients, or else an outgoing connection
could take one. The table is a file: the next daemon knows what is taken and what rests.
"""

import errno
import socket
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from orchestrator.host.ports import holder, trouble_with
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
        self._held: dict[str, list[socket.socket]] = {}
        kept = self._read()
        self._ports = dict(kept.ports)
        # Two run directories begin in different places, and seldom meet.
        self._last = kept.last or self._span[zlib.crc32(bytes(path)) % len(self._span)]

    def of(self, owner: str) -> int | None:
        """Return the first of this owner's ports; None if it has none."""
        return min(self._all_of(owner), default=None)

    def owners(self) -> set[str]:
        """All that have ports now."""
        return {each.owner for each in self._ports.values() if each.rests_until is None}

    def take(self, owner: str, count: int = 1) -> int:
        """Return the first of this owner's ports, `count` in a row.

        They are found free and held now unless it has them already. NoPortError: there are none.
        """
        mine = self._all_of(owner)
        if len(mine) == count:
            return min(mine)
        self.release(owner)
        self._wake()
        refused, wanted = 0, self._wanted()
        for block in self._round(count):
            if any(port in self._ports or port in wanted for port in block):
                continue
            held, trouble = _bind_all(block)
            if held:
                self._held[owner] = held
                self._ports |= {port: Entry(owner) for port in block}
                self._last = block[-1]
                self._save()
                return block[0]
            refused = refused or trouble
        raise NoPortError(self._exhausted(refused, count))

    def renew(self, owner: str, count: int = 1) -> tuple[int, str]:
        """Like `take`, for another life of this owner: also why its ports are others, if they are.

        Nobody of it is left, so whoever listens there is a stranger.
        """
        mine = sorted(self._all_of(owner))
        if len(mine) != count:
            return self.take(owner, count), ""
        trouble = next(filter(None, map(trouble_with, mine)), "")
        if trouble:
            self.release(owner)
            return self.take(owner, count), trouble
        if owner not in self._held:  # the daemon before held them
            held = (_hold(port, again=True) for port in mine)
            # Where somebody was faster, the worker will say so.
            self._held[owner] = [one for one in held if one is not None]
        return mine[0], ""

    def release(self, owner: str) -> None:
        """Let this owner's ports rest: no process of it is left."""
        ports = self._all_of(owner)
        if not ports:
            return
        for held in self._held.pop(owner, ()):
            held.close()
        until = self._clock() + REST_S
        self._ports |= {port: Entry(owner, until) for port in ports}
        self._save()

    def keep(self, owners: Collection[str]) -> None:
        """Release what belongs to anybody else: their end was missed."""
        for owner in self.owners():
            if owner not in owners:
                self.release(owner)

    def close(self) -> None:
        """Hold nothing any more; the table stays."""
        for owner in list(self._held):
            for held in self._held.pop(owner):
                held.close()

    def _all_of(self, owner: str) -> list[int]:
        return [
            port
            for port, entry in self._ports.items()
            if entry.owner == owner and entry.rests_until is None
        ]

    def _wake(self) -> None:
        """Forget what has rested long enough, which also bounds the table."""
        now = self._clock()
        self._ports = {
            port: entry
            for port, entry in self._ports.items()
            if entry.rests_until is None or entry.rests_until > now
        }

    def _round(self, count: int) -> Iterator[range]:
        """All rows of ports, beginning behind the last one taken."""
        first = self._span.index(self._last) + 1 if self._last in self._span else 0
        for port in (*self._span[first:], *self._span[:first]):
            if port + count <= self._span.stop:
                yield range(port, port + count)

    def _exhausted(self, refused: int, count: int) -> str:
        what = "free port" if count == 1 else f"{count} free ports in a row"
        text = f"no {what} from {self._span[0]} to {self._span[-1]}"
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


def _bind_all(block: range) -> tuple[list[socket.socket], int]:
    """Bind all of them, or none: then also say which one is taken."""
    held: list[socket.socket] = []
    for port in block:
        one = _hold(port)
        if one is None:
            for each in held:
                each.close()
            return [], port
        held.append(one)
    return held, 0


def _hold(port: int, *, again: bool = False) -> socket.socket | None:
    """Bind it as nobody else could, and hold it so that its listener can; None if it is taken.

    `again`: it was found without a listener; connections of an old life don't count.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, again)
    try:
        held.bind(("0.0.0.0", port))  # noqa: S104 - any listener is found, not served
    except OSError as error:
        held.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return held
