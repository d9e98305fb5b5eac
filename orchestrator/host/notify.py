"""The socket on which a plain command says how it is: systemd's `sd_notify`, as servers speak it.

A datagram holds lines KEY=VALUE. Taken are READY, STATUS, STOPPING, WATCHDOG and
EXTEND_TIMEOUT_USEC (sd_notify(3)); BARRIER is answered by closing the descriptor it brings, which
is how `systemd-notify` knows that it was heard. What was said is kept as facts, the newest of each
kind, and told to whoever looks after the worker: so a READY that was said while no daemon lived is
known to the next one.

The kernel says who has sent a datagram. Only the tree is believed: its main process, or all of it.
Who floods us is read no faster than each REST_S, and waits meanwhile.
"""

import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from orchestrator.host import procfs
from orchestrator.host.spawn import Spawn

NAME = "n"
DATAGRAM_MAX = 4096
STATUS_MAX = 200
"""Characters of a status text."""

AT_ONCE_MAX = 16
"""Datagrams read in one go."""

REST_S = 0.05
FDS_MAX = 4
CREDENTIALS = struct.Struct("=3i")
ANCILLARY = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(4 * FDS_MAX)
USEC_PER_S = 1_000_000
EXTEND_MAX_S = 366 * 86_400.0


class Notify:
    """Owns the socket, if the spawn asks for one. `tree`: those whom "all" means."""

    def __init__(
        self, poll: select.poll, spawn: Spawn, tree: Callable[[], list[procfs.Stat]]
    ) -> None:
        self._poll = poll
        self._directory = spawn.directory
        self._access = spawn.notify
        self._tree = tree
        self._socket: socket.socket | None = None
        self._read_at = 0.0
        self.rests_until: float | None = None
        self.facts: dict[str, object] | None = None

    def listen(self) -> None:
        """Bind in the life's directory; OSError when that can't be done."""
        if not self._access:
            return
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        folder = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        old = os.umask(0o177)
        try:
            ours.bind(f"/proc/self/fd/{folder}/{NAME}")
        finally:
            os.umask(old)
            os.close(folder)
        self._socket = ours
        self.facts = {}

    def forget(self) -> None:
        """Let go of the descriptor without closing it: we are a fork, and it isn't ours."""
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def watch(self, now: float = math.inf) -> None:
        """Let the poll object wake us: at first, and again when the rest is over."""
        if self._socket is not None and (self.rests_until or 0.0) <= now:
            self.rests_until = None
            self._poll.register(self._socket, select.POLLIN)

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is ours."""
        return self._socket is not None and fd == self._socket.fileno()

    def serve(self, main: int) -> bool:
        """Read what came; True when a fact is new."""
        assert self._socket is not None
        assert self.facts is not None
        now = time.monotonic()
        if now - self._read_at < REST_S:
            self.rests_until = now + REST_S
            self._poll.unregister(self._socket)
        self._read_at = now
        before = dict(self.facts)
        for _ in range(AT_ONCE_MAX):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    DATAGRAM_MAX, ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                break
            self._take(data, _sender(ancillary), now, main)
        return self.facts != before

    def _take(self, data: bytes, sender: int, now: float, main: int) -> None:
        assert self.facts is not None
        all_may = self._access == "all"
        if sender != main and not (all_may and any(one.pid == sender for one in self._tree())):
            if b"READY=1" in data.splitlines():
                self.facts["refused"] = sender
            return
        for line in data.decode("utf-8", "replace").splitlines():
            key, _, value = line.partition("=")
            self._note(key, value, now)

    def _note(self, key: str, value: str, now: float) -> None:
        facts = self.facts
        assert facts is not None
        match key, value:
            case "READY", "1":
                facts["ready"], facts["stopping"] = True, False
                facts.pop("refused", None)
            case "STOPPING", "1":
                facts["stopping"] = True
            case "STATUS", _:
                text = "".join(char if char.isprintable() else " " for char in value[:STATUS_MAX])
                facts["status"] = text
            case "WATCHDOG", "1":
                facts["alive_at"] = now
            case "WATCHDOG", "trigger":
                facts["triggered"] = True
            case "EXTEND_TIMEOUT_USEC", _ if value.isascii() and value.isdigit():
                by_s = min(int(value[:20]) / USEC_PER_S, EXTEND_MAX_S)
                facts["extended_until"] = now + by_s


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The sender's pid as the kernel tells it, 0 if it doesn't. Closes whatever it sent along."""
    pid = 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid = CREDENTIALS.unpack(data[: CREDENTIALS.size])[0]
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for (fd,) in struct.iter_unpack("=i", data[: len(data) // 4 * 4]):
                os.close(fd)
    return pid
