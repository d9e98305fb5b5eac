"""SIGTERM, honoured at once whatever the process is doing.

asyncio runs its signal handlers between callbacks, so while an engine is being built on the loop a
SIGTERM would wait for as long as that takes (measured: 21 s). A plain Python handler runs in the
middle of whatever Python code the main thread is in. During the start it cancels that code on the
spot, by raising the very exception that asyncio cancels with; after it, it only tells the loop.
"""

import asyncio
import os
import signal
from types import FrameType


class Sigterm:
    """Remembers that SIGTERM came. Main thread only."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.asked = False
        """True from the instant of the signal, also where the loop hasn't turned since."""
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Task[object] | None = None
        self._main: asyncio.Task[object] | None = None

    def install(self) -> None:
        """Handle SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._handle)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell this loop; the current task is the one that must never be interrupted."""
        self._loop = loop
        self._main = asyncio.current_task()
        if self.asked:
            self.came.set()

    def interrupt(self, task: "asyncio.Task[object] | None") -> None:
        """From now on a signal cancels `task`, and whatever else runs; None ends that."""
        self._start = task

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A child that the engine forked inherits this handler, but none of its meaning.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        self.asked = True
        if self._loop is None:
            return
        running = asyncio.current_task(self._loop)
        hit = self._start is not None and running is not None and running is not self._main
        self._loop.call_soon_threadsafe(self._tell_loop, hit)
        if hit:
            raise asyncio.CancelledError

    def _tell_loop(self, hit: bool) -> None:
        self.came.set()
        # Once is enough: a second cancel would interrupt the clean-up after the first.
        if self._start is not None and not hit:
            self._start.cancel()
