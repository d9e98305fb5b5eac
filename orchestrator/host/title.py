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

_ARG_START, _ARG_END, _ENV_START = 45, 46, 47
"""Positions after the name in /proc/PID/stat (fields 48 to 50 of proc(5))."""


def padded(tag: str) -> str:
    """Return the tag at its full length: the form in which it stands in an environment."""
    return tag.ljust(TAG_BYTES, "-")


def entry(tag: str) -> bytes:
    """Return the environment entry of a tree, as /proc/PID/environ shows it."""
    return f"{TAG_NAME}={padded(tag)}".encode()


_found: dict[str, tuple[int, int]] = {}
"""Address and room of title and tag. A fork has them where its parent had them."""


def locate() -> None:
    """Find both places. Called once, in the zygote, so that no shim needs to search."""
    line = procfs.read("/proc/self/stat", 4096) or b""
    fields = line.rpartition(b")")[2].split()
    if len(fields) > _ENV_START:
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        _found["title"] = (start, end - start - 1)
        environ = procfs.read("/proc/self/environ") or b""
        at = environ.find(f"{TAG_NAME}={PLACEHOLDER}".encode())
        if at >= 0:
            _found["tag"] = (int(fields[_ENV_START]) + at + len(TAG_NAME) + 1, TAG_BYTES)


def set_title(text: str) -> None:
    """Show `text` as our command line; cut to the room there is."""
    address, room = _found.get("title", (0, 0))
    if room > 0:
        _write(address, text.encode("utf-8", "replace")[:room].ljust(room, b"\0"))


def set_tag(tag: str) -> None:
    """Write the tag over the placeholder, or over the tag we were forked with."""
    address, room = _found.get("tag", (0, 0))
    if room > 0:
        _write(address, padded(tag).encode())


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
