"""An event loop whose time passes only when there is nothing else to do.

Sockets are real: what one end writes the other has at once, on the loopback interface. So hours of
leases and time-outs take milliseconds, and always end at the same moment of the loop's time.
"""

import asyncio
import selectors

GRACE_S = 0.002
"""For bytes that are on their way from one socket to the other."""
STUCK_S = 5.0


class _Impatient(selectors.DefaultSelector):
    passed = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if found or timeout == 0:
            return found
        found = super().select(STUCK_S if timeout is None else GRACE_S)
        if not found and timeout is None:
            raise TimeoutError("everybody waits, and for nothing that could come")
        if not found:
            self.passed += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0."""

    def __init__(self):
        self._impatient = _Impatient()
        super().__init__(self._impatient)

    def time(self):
        return self._impatient.passed


async def let_pass(seconds):
    """Let so much of the loop's time pass."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


def run(main):
    """Run a coroutine in a loop of its own; its result and how much time passed in it."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(main)
        return result, runner.get_loop().time()
