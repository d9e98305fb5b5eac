"""The one way a test waits for the world, and how it asks whether that was fast enough."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(condition: Callable[[], T], within_s: float = 10.0, every_s: float = 0.02) -> T:
    """Call `condition` until it returns something true, and return that.

    An AssertionError raised by the condition counts as "not yet" and is re-raised at the end, so
    a condition may assert what it wants to see.
    """
    deadline = time.monotonic() + within_s
    while True:
        last: AssertionError | None = None
        try:
            value = condition()
            if value:
                return value
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise last or AssertionError(f"not within {within_s} s: {condition}")
        time.sleep(every_s)


def in_time(deed: Callable[[], float], limit_s: float, tries: int = 8) -> None:
    """Do something that says how long it took, until that was at most `limit_s` once.

    A machine that is busy with other things is late now and then; what is too slow is late always.
    """
    took: list[float] = []
    while not took or took[-1] > limit_s:
        assert len(took) < tries, f"took {', '.join(f'{each:.3f}' for each in took)} s each time"
        took.append(deed())
