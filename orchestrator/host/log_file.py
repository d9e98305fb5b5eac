"""One worker's output, from its pipe into a file that doesn't grow for ever.

The bytes are spliced: they move from the pipe into the file inside the kernel and are never seen
here, which is what makes a shim cheap under a talkative worker. Only where a file is full are a
few bytes read, to cut at the end of a line.

Somebody else may move or truncate the file: logrotate does. Nobody tells us, so before writing we
look whether the path still leads to our file, at most twice a second; and a worker that is silent
wakes nobody for it. What is written within that half second still goes to the moved file.

A worker never pays for its log. When the disk is full or the file can't be written, the pipe is
emptied all the same, what is lost is counted, and every later piece of output is a new attempt; the
first that succeeds is preceded by a line that says how much is missing.
"""

import errno
import fcntl
import json
import os
import time

PIPE_BYTES = 256 << 10
"""Asked for; the kernel may give less. More would eat up the user's allowance of pipe pages."""

PUMP_BYTES = 8 << 20
"""Moved at most in one call, so that a talkative worker can't keep its shim from other duties."""

LINE_MAX = 64 << 10
"""A full file ends where a line ends, unless it would grow by more than this."""

LOOK_S = 0.5
"""So often at most it is looked whether the file is still where it was."""

TAIL_BYTES = 64 << 10
"""Kept of a life's log for whoever looks for its reason: a traceback of each engine process."""

CUT_BYTES = 4096
"""Read at a time to find the end of a line; what is beyond it begins the next file."""


def widen(pipe: int) -> None:
    """Let the pipe hold more, so that a worker seldom waits for its log."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return  # not allowed more: the worker waits a little more often


def size(path: str) -> int:
    """Bytes that are in a file now: none if there is no such file."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class LogFile:
    """Owns the file and its older brothers `.1`, `.2`, ... up to `backups`.

    `written_bytes` and `dropped_bytes` count this life only; the file itself goes on where an
    earlier life ended. The file must have no other writer: it isn't opened in append mode, because
    the kernel refuses to splice into that.
    """

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        self.written_bytes = 0
        self.dropped_bytes = 0
        self._path = path
        self._max_bytes = max_bytes
        self._limit_bytes = max_bytes
        self._backups = backups
        self._fd = -1
        self._null = -1
        self._size = 0
        self._life_bytes = 0
        self._unsaid_bytes = 0
        self._unsaid_why = ""
        self._splices = True
        self._looked_at = 0.0

    def limit(self, max_bytes: int, backups: int) -> None:
        """Take other limits from now on; older files than may be go at once."""
        self._max_bytes = self._limit_bytes = max_bytes
        self._backups = backups
        try:
            while True:
                backups += 1
                os.unlink(f"{self._path}.{backups}")
        except OSError:
            return  # there was no such file, or it can't go

    def pump(self, pipe: int) -> tuple[int, bool]:
        """Move what the (non-blocking) pipe holds.

        Returns the number of bytes moved or dropped, and whether the stream goes on: it ends when
        nobody holds the other end any more.
        """
        moved = 0
        now = time.monotonic()
        if self._fd >= 0 and now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        while moved < PUMP_BYTES:
            try:
                count = self._move(pipe)
            except BlockingIOError:
                break
            if count == 0:
                return moved, False
            moved += count
        return moved, True

    def tail(self, limit: int) -> bytes:
        """Return the last bytes of this life, across the newest rotation if need be."""
        wanted = min(limit, self._life_bytes)
        try:
            last = self._end_of(self._path, min(wanted, self._size))
            if len(last) < wanted and self._backups > 0:
                last = self._end_of(f"{self._path}.1", wanted - len(last)) + last
        except OSError:
            return b""  # somebody removed the log: an exit is reported without it
        return last

    def record(self) -> dict[str, object]:
        """Return what the exit record says about the log."""
        return {
            "log_bytes": self.written_bytes,
            "dropped_bytes": self.dropped_bytes,
            "tail": self.last_words(TAIL_BYTES),
        }

    def last_words(self, limit: int) -> str:
        """Return `tail` as text that takes at most twice `limit` bytes as JSON.

        Bytes that aren't text take up to six each there, and a packet has a limit of its own.
        """
        text = self.tail(limit).decode("utf-8", "replace")
        while len(json.dumps(text)) > 2 * limit:
            text = text[len(text) // 2 :]
        return text

    def close(self) -> None:
        """Close the descriptors; the bytes are safe with or without."""
        for fd in (self._fd, self._null):
            if fd >= 0:
                os.close(fd)
        self._fd = self._null = -1

    def _move(self, pipe: int) -> int:
        """Move one piece: 0 at the end of the stream, BlockingIOError while there is nothing."""
        try:
            self._open()
            self._say_what_was_lost()
            if self._size >= self._limit_bytes:
                return self._cut(pipe)
            if self._splices:
                return self._splice(pipe, min(self._limit_bytes - self._size, PIPE_BYTES))
            return self._write(os.read(pipe, LINE_MAX))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EINVAL and self._splices:
                self._splices = False  # this file system can't
                return self._move(pipe)
            return self._drop(pipe, error)

    def _splice(self, pipe: int, limit: int) -> int:
        flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
        count = os.splice(pipe, self._fd, limit, offset_dst=self._size, flags=flags)
        self._count(count)
        return count

    def _write(self, data: bytes) -> int:
        """Write bytes that have left the pipe; what can't be written is dropped. Never raises."""
        done = 0
        try:
            while done < len(data):
                count = os.pwrite(self._fd, data[done:], self._size)
                self._count(count)
                done += count
        except OSError as error:
            self._lose(len(data) - done, error)
        return len(data)

    def _count(self, count: int) -> None:
        self._size += count
        self._life_bytes += count
        self.written_bytes += count

    def _drop(self, pipe: int, error: OSError) -> int:
        if self._null < 0:
            self._null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        count = os.splice(pipe, self._null, PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
        self._lose(count, error)
        return count

    def _lose(self, count: int, error: OSError) -> None:
        self.dropped_bytes += count
        self._unsaid_bytes += count
        self._unsaid_why = error.strerror or str(error)

    def _say_what_was_lost(self) -> None:
        if not self._unsaid_bytes:
            return
        why = f"{self._unsaid_bytes} bytes of output are missing here: {self._unsaid_why}"
        line = f"\n[dynorch: {why}]\n".encode()
        if os.pwrite(self._fd, line, self._size) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)
        self._life_bytes += len(line)
        self._unsaid_bytes = 0

    def _open(self) -> None:
        if self._fd < 0:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.lseek(self._fd, 0, os.SEEK_END)

    def _look(self) -> None:
        """Let go of a file that was moved or removed; follow one that was cut short."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            os.close(self._fd)
            self._fd = -1
            self._limit_bytes = self._max_bytes
        elif ours.st_size < self._size:
            self._size = ours.st_size

    def _cut(self, pipe: int) -> int:
        """End a full file: with the line it is in, if that isn't too long."""
        at_line_end = self._size == 0 or os.pread(self._fd, 1, self._size - 1) == b"\n"
        if at_line_end or self._size >= self._limit_bytes + LINE_MAX:
            self._rotate()
            return self._move(pipe)
        data = os.read(pipe, CUT_BYTES)
        line, newline, rest = data.partition(b"\n")
        self._write(line + newline)
        if newline:
            self._rotate()
            self._write(rest)
        return len(data)

    def _rotate(self) -> None:
        """Move every file one number up and start a new one.

        Where that fails the present file is kept, so that nothing is lost, and tried again when it
        has grown by as much once more.
        """
        try:
            for number in range(self._backups - 1, 0, -1):
                if os.path.exists(f"{self._path}.{number}"):
                    os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            if self._backups > 0:
                os.replace(self._path, f"{self._path}.1")
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fresh = os.open(self._path, flags, 0o600)
        except OSError:
            self._limit_bytes = self._size + self._max_bytes
            return
        os.close(self._fd)
        self._fd, self._size, self._limit_bytes = fresh, 0, self._max_bytes

    @staticmethod
    def _end_of(path: str, count: int) -> bytes:
        if count <= 0:
            return b""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            return os.pread(fd, count, max(0, size - count))
        finally:
            os.close(fd)
