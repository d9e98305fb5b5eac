"""A daemon started ahead of time: it makes its imports while `up` makes its own and reads the file.

Both take half a second. Where the file is refused, or somebody else's daemon is faster, it leaves
without having touched anything.
"""

import contextlib
from collections.abc import Iterator

from orchestrator.cli.dirs import dirs
from orchestrator.daemon.client import Standby, daemon_pid


@contextlib.contextmanager
def daemon() -> Iterator[Standby | None]:
    """Give one that waits for a word, where none runs yet; it goes with us if none comes."""
    here = dirs()
    if daemon_pid(here.run) is not None:
        yield None
        return
    standby = Standby(here.run, here.state)
    try:
        yield standby
    finally:
        standby.cancel()
