"""Ends what a test session started, where it was ended itself before it could.

Run `last_will.py PID MARK`: it leaves its parent at once, and waits until that process is gone,
however it went. In the usual case nothing carries the session's mark any more, and it goes, too.
Else each dynorch that is still up is taken down in order, and what is left after that is killed.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOWN = [sys.executable, "-m", "orchestrator.cli.main", "down", "--now"]
DOWN_S = 30.0
KILL_S = 30.0
LOOK_S = 0.1
RUN_DIR = "DYNORCH_RUN_DIR"
TEMPORARY = "dyn-"
"""How the directories of our tests begin that pytest knows nothing of."""


def main() -> None:
    pid, mark = int(sys.argv[1]), os.fsencode(sys.argv[2])
    try:
        session = os.pidfd_open(pid)
    except ProcessLookupError:
        session = -1
    if os.fork():
        os._exit(0)
    os.setsid()  # the terminal's Ctrl-C isn't for us
    if session >= 0:
        select.select([session], [], [])
    homes = {env[RUN_DIR]: env for env in marked(mark).values() if RUN_DIR in env}
    for env in homes.values():
        take_down(env)
    kill(mark)
    for root in (Path(home).parent for home in homes):
        if root.name.startswith(TEMPORARY):
            shutil.rmtree(root, ignore_errors=True)


def marked(mark: bytes) -> dict[int, dict[str, str]]:
    """Environments of the living that carry the mark."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            entries = (entry / "environ").read_bytes().split(b"\0")
            if state not in "ZX" and mark in entries:
                pairs = (os.fsdecode(each).partition("=") for each in entries if b"=" in each)
                found[int(entry.name)] = {key: value for key, _, value in pairs}
    return found


def take_down(env: dict[str, str]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            DOWN, env=env, cwd=ROOT, timeout=DOWN_S, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def kill(mark: bytes) -> None:
    """Kill until nobody is left, also of those that were being born."""
    patience = time.monotonic() + KILL_S
    while (left := marked(mark)) and time.monotonic() < patience:
        for pid in with_descendants(left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        select.select([], [], [], LOOK_S)


def with_descendants(pids: Iterable[int]) -> list[int]:
    """They, and all below them: a command has the environment that its topology gives it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = list(pids)
    for pid in found:
        found += (each for each in children.get(pid, ()) if each not in found)
    return found


if __name__ == "__main__":
    main()
