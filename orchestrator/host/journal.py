"""Append-only lines, bounded in size.

One file and one predecessor: when a line would make the file larger than its limit, the file
becomes `.1` (and replaces the one before) and a new one begins. So there is always at least a
limit's worth of history, never more than twice that. A journal never stops a daemon: when the disk
is full, lines are counted as dropped until it isn't.
"""

import os
from collections.abc import Iterator
from pathlib import Path

FILE_BYTES_MAX = 16 << 20


class Position:
    """How far a follower has read: a file (by inode) and an offset in it."""

    __slots__ = ("inode", "offset")

    def __init__(self, inode: int = 0, offset: int = 0) -> None:
        self.inode = inode
        self.offset = offset


class Journal:
    """The file at `path` and its predecessor. One process appends, any number read.

    `generation` changes with each new file and each line that was lost: what comes then can't lean
    on what came before.
    """

    def __init__(self, path: Path, max_bytes: int = FILE_BYTES_MAX) -> None:
        self.dropped = 0
        self.generation = 0
        self._path = path
        self._old = path.with_name(f"{path.name}.1")
        self._max_bytes = max_bytes
        self._fd = -1
        self._size = 0

    def append(self, line: bytes) -> None:
        """Add one line (without its newline). It survives the process at once, not a power loss."""
        assert b"\n" not in line
        try:
            self._open()
            if self._size and self._size + len(line) + 1 > self._max_bytes:
                self.close()
                self._path.replace(self._old)
                self._open()
                self.generation += 1
            written = os.write(self._fd, line + b"\n")
        except OSError:
            self._lose()
            return
        self._size += written
        if written < len(line) + 1:
            self._lose()
            os.ftruncate(self._fd, self._size - written)
            self._size -= written

    def _lose(self) -> None:
        self.dropped += 1
        self.generation += 1

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def last(self, count: int) -> list[bytes]:
        """Return the newest lines, oldest of them first."""
        lines = _complete_lines(self._path)
        if len(lines) < count:
            lines = _complete_lines(self._old) + lines
        return lines[-count:] if count > 0 else []

    def every(self) -> list[bytes]:
        """Return all lines there are, oldest first."""
        return _complete_lines(self._old) + _complete_lines(self._path)

    def end(self) -> Position:
        """Return the position after the last line, for `follow`."""
        try:
            found = self._path.stat()
        except OSError:
            return Position()
        return Position(found.st_ino, found.st_size)

    def follow(self, position: Position) -> Iterator[bytes]:
        """Yield the lines after `position`, which moves along. Survives one rotation in between."""
        for path in (self._old, self._path):
            try:
                inode = path.stat().st_ino
            except OSError:
                continue
            if path == self._old and inode != position.inode:
                continue
            if inode != position.inode:
                position.inode, position.offset = inode, 0
            for line in _complete_lines(path, position.offset):
                position.offset += len(line) + 1
                yield line

    def _open(self) -> None:
        if self._fd < 0:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
            if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
                # A line that a power loss has torn stays a line of its own.
                self._size += os.write(self._fd, b"\n")


def _complete_lines(path: Path, offset: int = 0) -> list[bytes]:
    """Return the lines from `offset` on; a last one without its newline isn't complete yet."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return []
    return data.split(b"\n")[:-1]
