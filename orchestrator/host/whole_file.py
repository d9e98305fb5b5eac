"""Small files that are replaced whole: a reader sees the old content or the new, never half.

Not flushed to the disk: they must outlive processes, not the machine, whose next boot finds every
process gone anyway (what is written carries the boot's id).

Where the disk is full, a new file can't be had, but the blocks of the old one can still be written.
So a record that exists can be brought up to date even then: in one call, padded with blanks to its
old length, which no reader of JSON minds.

The same is much cheaper than a new file, and a file system that gets hundreds of new files a second
has trouble with all those it must forget: ext4 looks at each inode that was freed in the last five
seconds before it gives out another. So what nobody reads while its writer lives is always written
over (`bring_up_to_date`), as long as it fits into one page: the kernel looks for a deadly signal
only before it copies a page, so even a killed writer leaves the old content or the new.
"""

import errno
import os
import sys
from collections.abc import Callable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
PAGE = 4096


def bring_up_to_date(path: str, data: bytes, drafted: Callable[[], None] = lambda: None) -> None:
    """`write_whole` for a file that is read only when its writer is dead."""
    if not _write_over(path, data, PAGE, drafted):
        write_whole(path, data, drafted)


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


def write_new(path: str, data: bytes) -> None:
    """Write a file that isn't there yet, or only a part of it; OSError: it isn't there.

    Half of it is no JSON, which to its readers is the same as none of it.
    """
    try:
        _write(path, data)
    except OSError:
        _remove(path)
        raise


def append(path: str, line: bytes) -> None:
    """Add a line to a small file: its readers see all of it, or nothing yet."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(fd)


def _write_over(
    path: str,
    data: bytes,
    size_max: int = sys.maxsize,
    drafted: Callable[[], None] = lambda: None,
) -> bool:
    """Write into the blocks that the file has; False when they don't suffice, or `size_max`."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        padded = data.ljust(found.st_size)
        if len(data) > found.st_blocks * 512 or len(padded) > size_max:
            return False
        drafted()
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
