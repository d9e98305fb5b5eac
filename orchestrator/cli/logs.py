"""`dynorch logs`: the files that the shims write, read where they lie.

No daemon is needed: a log must be readable most of all when everything else is gone. Following
several files prefixes each line with its worker; see `views.tail` for how one is followed.
"""

import select
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.views.tail import LogTail

FOLLOW_S = 0.2


class Source(NamedTuple):
    """One worker's log: its name (`agg/worker-0.0`) and the current file."""

    name: str
    path: Path


def source_of(path: Path) -> Source:
    """Whose log this is: the path says so."""
    return Source(f"{path.parent.name}/{path.stem}", path)


def find(state_dir: Path, target: str | None) -> list[Source]:
    """Log files of a target: a topology, `topology/role`, a replica or a worker; all when None."""
    root = state_dir / "logs"
    sources = [source_of(path) for path in sorted(root.glob("*/*.log"))]
    if target is None:
        return sources
    return [source for source in sources if matches(source.name, target)]


def matches(name: str, target: str) -> bool:
    """Whether a worker's name lies within a target."""
    if name == target or name.startswith(target + "/"):
        return True
    rest = name.removeprefix(target)
    return rest != name and rest[0] in "-." and rest[1:2].isdigit()


def last_lines(path: Path, lines: int) -> list[str]:
    """The last lines of a file, one without its newline included."""
    tail = LogTail(path, lines, skips=False)
    found = list(every(tail))
    return [*found, tail.unfinished][-lines:] if tail.unfinished and lines else found


def every(tail: LogTail) -> Iterator[str]:
    """All that has come since the last look."""
    while lines := tail.read():
        yield from lines


def pause() -> None:
    """Wait until it's worth looking again."""
    select.select([], [], [], FOLLOW_S)
