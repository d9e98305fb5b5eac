"""The end of a log file, and what is added to it afterwards.

The file may be gigabytes, is rotated by rename under our feet, and may not exist yet. So only its
last bytes are ever read, a smaller file or another inode means a new file, and one call reads a
bounded amount: of what comes faster than it is looked at, the oldest is skipped, and a line says
how much.
"""

import os
from pathlib import Path

READ_BYTES_MAX = 64 * 1024
"""What one call reads at most."""

LINE_CHARS_MAX = 2_000
"""Longer lines are cut."""


class LogTail:
    """Follows one file. The first `read` gives the last `lines_max` lines, later ones the news."""

    def __init__(self, path: str, lines_max: int) -> None:
        self._path = Path(path)
        self._lines_max = lines_max
        self._inode = 0
        self._offset = -1
        self._partial = b""

    def read(self) -> list[str]:
        """Return the complete lines since the last call; none while the file doesn't exist."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there yet, or between rotation and reopening: look again next time
            return []
        try:
            facts = os.fstat(handle)
            first = self._offset < 0
            if facts.st_ino != self._inode or facts.st_size < self._offset:
                self._inode, self._offset, self._partial = facts.st_ino, 0, b""
            skipped = max(0, facts.st_size - self._offset - READ_BYTES_MAX)
            start = self._offset + skipped
            data = os.pread(handle, min(READ_BYTES_MAX, facts.st_size - start), start)
        finally:
            os.close(handle)
        self._offset = start + len(data)
        lines = self._split(data, skipped)
        if first:
            return lines[-self._lines_max :]
        return [f"[{skipped} bytes skipped]", *lines] if skipped else lines

    def _split(self, data: bytes, skipped: int) -> list[str]:
        if skipped:
            # Of the line that we land in, only the end is there.
            data, self._partial = data.partition(b"\n")[2], b""
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-READ_BYTES_MAX:]
        return [line[:LINE_CHARS_MAX].decode(errors="replace") for line in whole]
