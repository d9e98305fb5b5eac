"""The end of a log file, and what is added to it afterwards.

The file may be gigabytes, is rotated by rename under our feet, and may not exist yet. So it is read
from its end, a smaller file or another inode means a new file (what the old one got last is found
under its new name), and one call reads a bounded amount. A display skips what comes faster than it
looks and says how much; who must have every line calls again until there is none.
"""

import os
from pathlib import Path

READ_BYTES_MAX = 64 * 1024
"""What one call reads at most, and the longest line."""

LINE_CHARS_MAX = 2_000
"""A display cuts longer lines."""


class LogTail:
    """Follows one file. The first `read` begins `lines_max` lines from its end, later ones go on.

    `skips`: for a display, which shows the newest and cuts long lines.
    """

    def __init__(self, path: str | Path, lines_max: int, *, skips: bool = True) -> None:
        self._path = Path(path)
        self._lines_max = lines_max
        self._skips = skips
        self._inode = 0
        self._offset = 0
        self._partial = b""

    @property
    def unfinished(self) -> str:
        """The last line so far, while its newline hasn't come."""
        return self._partial.decode(errors="replace")

    def read(self) -> list[str]:
        """Return complete lines since the last call; none while the file doesn't exist."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there yet, or between rotation and reopening: look again next time
            return []
        try:
            facts = os.fstat(handle)
            before: list[str] = []
            if self._inode == 0:
                self._offset = self._begin(handle, facts.st_size)
            elif facts.st_ino != self._inode:
                before = self._rest_of_rotated()
                self._offset, self._partial = 0, b""
            elif facts.st_size < self._offset:
                self._offset, self._partial = 0, b""
            self._inode = facts.st_ino
            return before + self._news(handle, facts.st_size)
        finally:
            os.close(handle)

    def _begin(self, handle: int, size: int) -> int:
        """Find where the last lines begin; a display looks no further than one read."""
        floor = max(0, size - READ_BYTES_MAX) if self._skips else 0
        position, found, begin = size, 0, size
        while position > floor:
            step = min(READ_BYTES_MAX, position - floor)
            position -= step
            data = os.pread(handle, step, position)
            at = len(data)
            while (at := data.rfind(b"\n", 0, at)) >= 0:
                begin, found = position + at + 1, found + 1
                if found > self._lines_max:
                    return begin
        return begin if floor else 0

    def _rest_of_rotated(self) -> list[str]:
        try:
            handle = os.open(f"{self._path}.1", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        lines: list[str] = []
        try:
            facts = os.fstat(handle)
            while facts.st_ino == self._inode and self._offset < facts.st_size:
                lines += self._news(handle, facts.st_size)
        finally:
            os.close(handle)
        return lines

    def _news(self, handle: int, size: int) -> list[str]:
        skipped = max(0, size - self._offset - READ_BYTES_MAX) if self._skips else 0
        self._offset += skipped
        data = os.pread(handle, min(READ_BYTES_MAX, size - self._offset), self._offset)
        self._offset += len(data)
        if skipped:
            # Of the line that we land in, only the end is there.
            data, self._partial = data.partition(b"\n")[2], b""
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-READ_BYTES_MAX:]
        length = LINE_CHARS_MAX if self._skips else None
        lines = [line[:length].decode(errors="replace") for line in whole]
        return [f"[{skipped} bytes skipped]", *lines] if skipped else lines
