"""`dynorch logs`: the files that the shims write, read where they lie.

No daemon is needed: a log must be readable most of all when everything else is gone. Following
several files prefixes each line with its worker, and survives rotation by noticing that the path
names another file now.
"""

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 64 * 1024
FOLLOW_S = 0.2
LINE_BYTES_MAX = 64 * 1024
"""A line that doesn't end is cut here, so that a binary stream can't fill memory."""


class Source(NamedTuple):
    """One worker's log: its name (`agg/worker-0.0`) and the current file."""

    name: str
    path: Path


def find(state_dir: Path, target: str | None) -> list[Source]:
    """Log files of a target: a topology, `topology/role`, a replica or a worker; all when None."""
    root = state_dir / "logs"
    sources = [
        Source(f"{path.parent.name}/{path.stem}", path) for path in sorted(root.glob("*/*.log"))
    ]
    if target is None:
        return sources
    return [source for source in sources if matches(source.name, target)]


def matches(name: str, target: str) -> bool:
    """Whether a worker's name lies within a target."""
    if name == target or name.startswith(target + "/"):
        return True
    rest = name.removeprefix(target)
    return rest != name and rest[0] in "-." and rest[1:2].isdigit()


def tail(path: Path, lines: int) -> bytes:
    """The last `lines` lines of a file, reading from its end."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= lines:
                step = min(BLOCK_BYTES, position)
                position = file.seek(position - step)
                data = file.read(step) + data
    except FileNotFoundError:
        return b""
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


class Follower:
    """One file being followed across rotations."""

    def __init__(self, source: Source, *, from_end: bool) -> None:
        self.source = source
        self._from_end = from_end
        self._file: BinaryIO | None = None
        self._rest = b""

    def _open(self) -> None:
        try:
            self._file = self.source.path.open("rb")
        except FileNotFoundError:
            return
        if self._from_end:
            self._file.seek(0, os.SEEK_END)
        self._from_end = False

    def lines(self) -> Iterator[bytes]:
        """Whole lines that have come since the last call."""
        if self._file is None:
            self._open()
        if self._file is None:
            return
        yield from self._new(self._file)
        if self._rotated(self._file):
            yield from self._new(self._file)  # what came between the read and the rotation
            self._file.close()
            self._file = None

    def _new(self, file: BinaryIO) -> Iterator[bytes]:
        while data := file.read(BLOCK_BYTES):
            *whole, self._rest = (self._rest + data).split(b"\n")
            yield from whole
            if len(self._rest) > LINE_BYTES_MAX:
                yield self._rest
                self._rest = b""

    def _rotated(self, file: BinaryIO) -> bool:
        try:
            now = self.source.path.stat()
        except FileNotFoundError:
            return True
        mine = os.fstat(file.fileno())
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev)


def pause() -> None:
    """Wait until it's worth looking again."""
    select.select([], [], [], FOLLOW_S)
