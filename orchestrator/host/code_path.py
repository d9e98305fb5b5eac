"""The import path of zygotes, shims and workers: what they are made of, and nothing else of ours.

It comes first in the path of every interpreter that a worker runs in. The directory that we were
imported from wouldn't do: it may be our whole site-packages, built for another Python, and an
engine's environment must find its own packages, not ours.

It is made with a daemon's first zygote, and goes with the last process that may need it. What an
interpreter compiles goes where our own is.
"""

import shutil
from pathlib import Path

WHOLE = ("workers", "orchestrator/__init__.py", "orchestrator/wire")
HOST = (
    "__init__", "cgroup", "child", "clients", "enclosure", "fault_points", "framing", "kernel",
    "log_file", "nest", "notify", "prctl", "procfs", "seed", "shim", "shm", "spawn", "title",
    "tree", "whole_file", "zygote",
)  # fmt: skip
"""Of `orchestrator.host`: what a zygote or a shim imports."""
COMPILED = ("orchestrator/__pycache__", "orchestrator/host/__pycache__")


def link(folder: Path) -> None:
    """Make `folder` that path. OSError when it can't be written."""
    source = Path(__file__).resolve().parents[2]
    if (folder / "orchestrator").is_symlink():  # an earlier version's, with all of it
        (folder / "orchestrator").unlink()
    (folder / "orchestrator/host").mkdir(parents=True, exist_ok=True)
    for name in (*WHOLE, *COMPILED, *(f"orchestrator/host/{module}.py" for module in HOST)):
        entry = folder / name
        if not entry.is_symlink() or entry.readlink() != source / name:
            remove(entry)
            entry.symlink_to(source / name)


def remove(path: Path) -> None:
    """Remove it, or a part of it; what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
