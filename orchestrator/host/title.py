"""What `ps` shows, and the tag by which a forked process can be told from its brothers.

A forked process has the command line and the environment area of the one it was forked from. Both
lie in its own memory, between addresses that /proc/self/stat gives, so it can write over them
through /proc/self/mem: the title over the (padded) arguments, the tag over a placeholder of the
same length. Everything that such a process forks inherits both. All of it is best effort: where
the kernel forbids it, processes are merely less well named.
"""

import os

from orchestrator.host import procfs

TAG_NAME = "DYNORCH_TREE"
TAG_BYTES = 160
"""Room for a tag. Longer ones are refused where they are made (see `spawn`)."""

PLACEHOLDER = "-" * TAG_BYTES
"""What the zygote is started with as its tag, and what no tree is ever tagged with."""

PADDING = "." * 120
"""A last argument for the zygote: room for longer titles."""

_ARG_START, _ARG_END, _ENV_START, _ENV_END = 45, 46, 47, 48
"""Positions after the name in /proc/PID/stat (fields 48 to 51 of proc(5))."""


def padded(tag: str) -> str:
    """Return the tag at its full length: the form in which it stands in an environment."""
    return tag.ljust(TAG_BYTES, "-")


def entry(tag: str) -> bytes:
    """Return the environment entry of a tree, as /proc/PID/environ shows it."""
    return f"{TAG_NAME}={padded(tag)}".encode()


def set_title(text: str) -> None:
    """Show `text` as our command line; cut to the room there is."""
    start, end = _area(_ARG_START, _ARG_END)
    room = end - start - 1
    if room > 0:
        _write(start, text.encode("utf-8", "replace")[:room].ljust(room + 1, b"\0"))


def set_tag(tag: str) -> None:
    """Write the tag over the placeholder, or over the tag we were forked with."""
    start, _ = _area(_ENV_START, _ENV_END)
    environ = b"\0" + (procfs.read("/proc/self/environ") or b"")
    name = f"\0{TAG_NAME}=".encode()
    at = environ.find(name)
    # The leading NUL that we put before it shifts everything by one.
    value = at + len(name)
    if at >= 0 and environ.find(b"\0", value) == value + TAG_BYTES:
        _write(start + value - 1, padded(tag).encode())


def _area(first: int, last: int) -> tuple[int, int]:
    line = procfs.read("/proc/self/stat", 4096) or b""
    fields = line.rpartition(b")")[2].split()
    return (int(fields[first]), int(fields[last])) if len(fields) > last else (0, 0)


def _write(address: int, data: bytes) -> None:
    try:
        fd = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.pwrite(fd, data, address)
    except OSError:
        return
    finally:
        os.close(fd)
