"""The import path of zygotes, shims and workers: what they are made of, and nothing else of ours.

It comes first in the path of every interpreter that a worker runs in. The directory that we were
imported from wouldn't do: it may be our whole site-packages, built for another Python, and an
engine's environment must find its own packages, not ours.
"""

from pathlib import Path

WHOLE = ("workers", "orchestrator/__init__.py", "orchestrator/wire")
HOST = (
    "__init__", "cgroup", "child", "clients", "enclosure", "fault_points", "framing", "kernel",
    "log_file", "nest", "notify", "prctl", "procfs", "seed", "shim", "shm", "spawn", "title",
    "tree", "whole_file", "zygote",
)  # fmt: skip
"""Of `orchestrator.host`: what a zygote or a shim imports."""
COMPILED = "orchestrator/host/__pycache__"


def link(folder: Path) -> None:
    """Make `folder` that path. OSError when it can't be written."""
    source = Path(__file__).resolve().parents[2]
    if (folder / "orchestrator").is_symlink():  # an earlier version's, with all of it
        (folder / "orchestrator").unlink()
    (folder / "orchestrator/host").mkdir(parents=True, exist_ok=True)
    for name in (*WHOLE, COMPILED, *(f"orchestrator/host/{module}.py" for module in HOST)):
        entry = folder / name
        if not entry.is_symlink() or entry.readlink() != source / name:
            entry.unlink(missing_ok=True)
            entry.symlink_to(source / name)
