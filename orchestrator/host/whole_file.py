"""Small files that are replaced whole: a reader sees the old content or the new, never half.

Not flushed to the disk: they must outlive processes, not the machine, whose next boot finds every
process gone anyway (what is written carries the boot's id).

Where the disk is full, a new file can't be had, but the blocks of the old one can still be written.
So a record that exists can be brought up to date even then: in one call, padded with blanks to its
old length, which no reader of JSON minds.
"""

import errno
import os
from collections.abc import Callable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def write_whole(path: str, data: bytes, drafted: Callable[[], None] = lambda: None) -> None:
    """Replace the file, for our eyes only. OSError when neither way works; then the old one stays.

    Content that may have to be written over must bear trailing blanks. `drafted` is called when
    the new content is on the disk, beside the old.
    """
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.new")
    try:
        _write(draft, data)
        drafted()
        os.replace(draft, path)
    except OSError as error:
        _remove(draft)
        if error.errno not in FULL or not _write_over(path, data):
            raise


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(fd)


def _write_over(path: str, data: bytes) -> bool:
    """Write into the blocks that the file has; False when they don't suffice."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if len(data) > found.st_blocks * 512:
            return False
        padded = data.ljust(found.st_size)
        return os.pwrite(fd, padded, 0) == len(padded)
    except OSError:
        return False
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
