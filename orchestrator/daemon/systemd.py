"""What systemd is told: that the daemon is ready, what it is doing, that it is alive.

systemd's protocol is a datagram of `KEY=VALUE` lines to the socket that it names in NOTIFY_SOCKET
(sd_notify(3)). Where it names none, nothing here happens and nothing is armed. The variables are
taken out of the environment at once: a worker that found them would speak in the daemon's name.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

STATUS_EVERY_S = 0.2
"""Changes are told together, at most this often: a start of 200 replicas is no 200 messages."""


class Systemd:
    """The service manager's ear; deaf where there is none. `headline()`: the daemon in one line."""

    def __init__(self, environ: MutableMapping[str, str], headline: Callable[[], str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", str(os.getpid()))
        # A name that begins with @ is an abstract one.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        mine = usec.isdigit() and pid == str(os.getpid())
        self._watchdog_s = int(usec) / 2e6 if mine else 0.0
        self._headline = headline
        self._told = ""
        self._due: asyncio.TimerHandle | None = None
        self._alive: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """The daemon serves, or has applied what it was told to."""
        self._say("READY=1")
        if self._watchdog_s and self._alive is None:
            self._wag()
        self.changed()

    def reloading(self) -> None:
        """A changed topology is being applied; `ready` ends it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def changed(self) -> None:
        """Something that the headline may tell is different."""
        if self._address and self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(STATUS_EVERY_S, self._tell)

    def close(self) -> None:
        """Say nothing more by itself."""
        for timer in (self._due, self._alive):
            if timer is not None:
                timer.cancel()

    def _tell(self) -> None:
        self._due = None
        headline = self._headline()
        if headline != self._told and self._say(f"STATUS={headline}"):
            self._told = headline

    def _wag(self) -> None:
        """Twice per period, from the loop: a loop that hangs is what the watchdog is there for."""
        self._say("WATCHDOG=1")
        self.changed()  # should the last headline have found its queue full
        self._alive = asyncio.get_running_loop().call_later(self._watchdog_s, self._wag)

    def _say(self, *lines: str) -> bool:
        if not self._address:
            return False
        text = "\n".join(line.replace("\n", " ") for line in lines)
        # A service manager that doesn't listen must not stop us.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto(text.encode(), self._address)
            return True
        return False
