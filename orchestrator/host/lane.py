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
from typing import Any, TypeVar

T = TypeVar("T")
RAISED = object()


class LateError(Exception):
    """The call didn't return in time, or the one before it hasn't yet."""


class Lane:
    """Calls to `what`, one at a time; who comes meanwhile waits."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False
        self._lock = asyncio.Lock()

    async def call(self, function: Callable[[], T], deadline_s: float) -> T:
        """Call `function` in the thread and return what it returns. Raises LateError.

        It must not raise: what it can foresee, it returns.
        """
        async with self._lock:
            loop = asyncio.get_running_loop()
            if self._busy:
                raise LateError(f"{self._what} hangs; the last question hasn't come back")
            self._busy = True
            future: asyncio.Future[Any] = loop.create_future()
            self._begin(function, future)
            # Not wait_for: that would wait for a cancelled call as well.
            await asyncio.wait([future], timeout=deadline_s)
            if not future.done():
                raise LateError(f"{self._what} hasn't answered for {deadline_s:g} s")
            result: T = future.result()
            assert result is not RAISED, f"{self._what}: a call raised; its traceback is above"
            return result

    def _begin(self, function: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        loop = asyncio.get_running_loop()

        def back(result: object) -> None:
            self._busy = False
            if not future.done():
                future.set_result(result)

        def run() -> None:
            result: object = RAISED
            try:
                result = function()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the daemon has ended
                    loop.call_soon_threadsafe(back, result)

        threading.Thread(target=run, name=f"ask {self._what}", daemon=True).start()
