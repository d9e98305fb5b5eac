"""What the kernel says of the processes below ours: asked when the engine owes an answer.

A process that is stopped (SIGSTOP, a debugger) can do nothing about it itself, and nobody tells its
parent's loop. /proc tells: one letter per process. Everything here may vanish between two reads.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

KIN_MAX = 64
NAMED_MAX = 6
NAME_MAX = 40
HELPERS = ("multiprocessing.resource_tracker",)
"""They only hold names of shared memory and owe nobody an answer."""
STATES = {
    "R": "runs",
    "S": "sleeps",
    "D": "waits in the kernel",
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "Z": "is dead and not reaped",
    "X": "is dead",
    "I": "idles",
}
STOPPED = frozenset("Tt")


class Kin(NamedTuple):
    """One process below ours; `state` is the kernel's letter."""

    pid: int
    name: str
    state: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) {STATES.get(self.state, 'is')} (state {self.state})"


def describe(kin: list[Kin]) -> tuple[str, bool]:
    """Say who is stopped, or else what all of them do; the second value: somebody is stopped."""
    stopped = [one for one in kin if one.state in STOPPED]
    shown = [str(one) for one in (stopped or kin)[:NAMED_MAX]]
    more = len(stopped or kin) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else ""), bool(stopped)


def below(pid: int | None = None) -> list[Kin]:
    """Find the descendants of a process, of ours by default, parents before children."""
    found: list[Kin] = []
    parents = [os.getpid() if pid is None else pid]
    while parents and len(found) < KIN_MAX:
        for child in _children(parents.pop(0)):
            kin = _look(child)
            if kin is not None and len(found) < KIN_MAX:
                parents.append(child)
                if not any(helper in kin.name for helper in HELPERS):
                    found.append(kin._replace(name=kin.name.split(" ")[0][:NAME_MAX]))
    return found


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (task / "children").read_text().split())


def _look(pid: int) -> Kin | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return None
    return Kin(pid, title.decode(errors="replace").strip() or name, rest.split()[0])
