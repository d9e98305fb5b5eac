"""`VLLM::EngineCore` and `VLLM::Worker`, so that people can tell an engine's processes apart.

vLLM names them by `setproctitle`, which looks for the memory of its command line by comparing it
with the arguments that Python remembers. In a fork of the zygote that memory has long shown
another title, and the environment behind it is a new one: it finds nothing, and says nothing. The
kernel knows where the command line is, so here it is written from what /proc says.
"""

import contextlib
import os
import sys
from pathlib import Path

COMM_MAX = 15
"""What the kernel keeps of a process's short name."""

_ARG_START, _ARG_END = 45, 46
"""Positions after the name in /proc/PID/stat (fields 48 and 49 of proc(5))."""


def take_over() -> None:
    """Let `setproctitle.setproctitle` be ours, here and in what is forked from here."""
    module = sys.modules.get("setproctitle")
    if module is not None:
        module.setproctitle = show  # type: ignore[attr-defined]


def show(title: str) -> None:
    """Show a title as this process's name and command line, cut to the room there is.

    Best effort: where the kernel forbids it, a process is merely less well named.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(title[:COMM_MAX])
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        room = end - start - 1
        if room > 0:
            shown = title.encode(errors="replace")[:room].ljust(room + 1, b"\0")
            memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(memory, shown, start)
            finally:
                os.close(memory)
