"""One thread for calls that may never return.

The driver can hang: for a second, for a minute, until the next reboot. So whatever asks it is
called in a thread of its own, one call at a time, with a deadline. A call that is late is given up,
not interrupted, for nothing can interrupt it; until it returns, if ever, every other call is
refused at once. So there is never more than one thread, and it is a daemon thread: the process can
end although it hangs. While nobody calls there is none.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
RAISED = object()


class LateError(Exception):
    """The call didn't return in time, or the one before it hasn't yet."""


class Lane(Generic[T]):
    """Calls, one at a time."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def submit(
        self, function: Callable[[], T], deadline_s: float, done: Callable[[T | LateError], None]
    ) -> None:
        """Call `function` in the thread, and `done` in the running loop with what it returned.

        `function` must not raise what it can foresee: that ends the daemon.
        """
        loop = asyncio.get_running_loop()
        if self._since is not None:
            waited_s = loop.time() - self._since
            loop.call_soon(done, LateError(f"{self._what} hangs, for {waited_s:.0f} s now"))
            return
        self._since = loop.time()
        late = LateError(f"{self._what} hasn't answered for {deadline_s:g} s")
        timer = loop.call_later(deadline_s, done, late)

        def back(result: T | object) -> None:
            self._since = None
            assert result is not RAISED, f"{self._what}: the call raised; its traceback is above"
            if timer.when() > loop.time() and not timer.cancelled():
                timer.cancel()
                done(result)  # type: ignore[arg-type]

        def run() -> None:
            result: T | object = RAISED
            try:
                result = function()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
                    loop.call_soon_threadsafe(back, result)

        threading.Thread(target=run, name=f"ask {self._what}", daemon=True).start()

    async def call(self, function: Callable[[], T], deadline_s: float) -> T:
        """Do it and wait for it. Raises LateError."""
        future: asyncio.Future[T | LateError] = asyncio.get_running_loop().create_future()

        def done(result: T | LateError) -> None:
            if not future.done():
                future.set_result(result)

        self.submit(function, deadline_s, done)
        result = await future
        if isinstance(result, LateError):
            raise result
        return result
