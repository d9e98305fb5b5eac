"""The daemon's end of a shim's socket.

A link begins with reading who lives in a directory and pinning the shim by a pidfd; from then on
nothing it does can hit another process. It ends with exactly one of two events: `TreeEmpty`, or
`ShimLost`. A broken connection isn't an end: as long as the shim lives, the link connects again
and is told the state. Death is known from the pidfd, never from the socket.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from orchestrator.host import prctl, records
from orchestrator.host.records import LifeRecord, ShimEvent, ShimLost, TreeEmpty

PACKET_MAX = 256 << 10
RECONNECT_S = 0.05
RECONNECTS_MAX = 20
"""After so many failures in a row the link only waits for the shim's end."""

WORDS_BYTES = 4096


class ShimLink:
    """One life as the daemon sees it. Made by `connect`, in a running loop."""

    def __init__(
        self, directory: Path, record: LifeRecord, on_event: Callable[[ShimEvent], None]
    ) -> None:
        self.record = record
        self._directory = directory
        self._on_event: Callable[[ShimEvent], None] | None = on_event
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._failures = 0
        # What is to be sent, newest of each kind: repeating an order changes nothing.
        self._orders: dict[str, bytes] = {}

    @classmethod
    def connect(cls, directory: Path, on_event: Callable[[ShimEvent], None]) -> Self:
        """Begin to follow the life in this directory; events come from the loop, none from here.

        FileNotFoundError when no shim has ever left a record there.
        """
        record = records.read_life(directory)
        if record is None:
            raise FileNotFoundError(f"no life is recorded in {directory}")
        link = cls(directory, record, on_event)
        link._begin()
        return link

    def stop(self, grace_s: float, linger_s: float) -> None:
        """One SIGTERM to main, unless it had it; the tree kill when `grace_s` is over."""
        self._order("stop", {"op": "stop", "grace_s": grace_s, "linger_s": linger_s})

    def kill(self) -> None:
        """Kill the whole tree now."""
        self._order("kill", {"op": "kill"})

    def note_shared_memory(self) -> None:
        """Let it write down which names in /dev/shm its tree maps now."""
        self._order("note", {"op": "note"})

    def limit_log(self, max_bytes: int, backups: int) -> None:
        """Let its log file and the older ones have these limits; an older shim refuses."""
        self._order("log", {"op": "log", "max_bytes": max_bytes, "backups": backups})

    def ask_state(self) -> None:
        """Ask for a `StateSeen`."""
        self._order("state", {"op": "state"})

    def close(self) -> None:
        """Look away. The shim and its worker go on; no event comes any more."""
        self._on_event = None
        self._disconnect()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        pidfd = self.record.shim_identity.open()
        if pidfd is None:
            loop.call_soon(self._shim_died)
            return
        self._pidfd = pidfd
        loop.add_reader(pidfd, self._shim_died)
        self._connect()

    def _connect(self) -> None:
        if self._on_event is None or self._pidfd < 0 or self._socket is not None:
            return
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
            try:
                # A path through the descriptor is short enough for a socket's address.
                peer.connect(f"/proc/self/fd/{folder}/s")
            finally:
                os.close(folder)
        except OSError:
            peer.close()
            self._failures += 1
            if self._failures < RECONNECTS_MAX:
                loop.call_later(RECONNECT_S * self._failures, self._connect)
            return
        self._socket = peer
        loop.add_reader(peer.fileno(), self._read)
        self._flush()

    def _disconnect(self) -> None:
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        """Take what came. A closed connection is made again, should the shim live on."""
        while self._socket is not None:
            try:
                packet = self._socket.recv(PACKET_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._disconnect()
                self._failures += 1
                asyncio.get_running_loop().call_later(RECONNECT_S, self._connect)
                return
            self._failures = 0
            self._tell(packet)

    def _tell(self, packet: bytes) -> None:
        try:
            event = records.decode_event(packet)
        except msgspec.MsgspecError:
            return  # a shim of a later version says something that we don't know
        if isinstance(event, TreeEmpty):
            self._end(event)
        elif self._on_event is not None:
            self._on_event(event)

    def _order(self, kind: str, order: dict[str, object]) -> None:
        self._orders[kind] = json.dumps(order).encode()
        self._flush()
        if kind in {"stop", "kill"} and self._pidfd >= 0:
            # One that somebody has stopped (SIGSTOP) would never hear it, nor ever end.
            with contextlib.suppress(OSError):
                prctl.pidfd_send_signal(self._pidfd, signal.SIGCONT)

    def _flush(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._socket.fileno())
        for kind, packet in list(self._orders.items()):
            try:
                self._socket.send(packet)
            except BlockingIOError:
                loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError:
                return  # the reader will see it, and what is unsent goes to the next connection
            del self._orders[kind]

    def _shim_died(self) -> None:
        """Its last words may still lie in the socket, or else in the directory."""
        self._read()
        if self._on_event is None:
            return
        record = records.read_exit(self._directory)
        self._end(record or ShimLost(self.record, self._last_words()))

    def _end(self, event: TreeEmpty | ShimLost) -> None:
        on_event = self._on_event
        self.close()
        if on_event is not None:
            on_event(event)

    def _last_words(self) -> str:
        try:
            words = (self._directory / "shim.err").read_bytes()
        except OSError:
            return ""
        return words[-WORDS_BYTES:].decode("utf-8", "replace")
