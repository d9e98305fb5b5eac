"""A control group of a tree's own, where the machine lets us make one.

Whoever is in a group can't leave it by forking, by a new session or by shedding its environment, so
the group knows the whole tree even when its shim is dead, and one write kills all of it, however
fast it forks. Nothing else is asked of it: no controller is switched on, no limit set.

Only version 2 has this, and often we may not use it: in most containers the hierarchy is read-only,
and under systemd it belongs to systemd, except for what was delegated to us (`Delegate=yes` in the
unit). So a group is an addition: the walk over /proc finds the same processes while a shim lives.

A process is born in its group if it can be (see `fork_into`). Else its parent moves it right after
the fork, not the process itself: a first move after a quiet moment takes the kernel some 15 ms,
which a worker's first instruction needn't wait for. What it forks before it is moved stays outside,
and only the walk sees it.
"""

import errno
import os
import time

from orchestrator.host import prctl, procfs

MOUNTS = "/proc/self/mounts"
OWN = "/proc/self/cgroup"
SYSTEMD = "/run/systemd/system"
DELEGATED = ("user.delegate", "trusted.delegate")
"""Set by systemd on a group that was given away."""

PREFIX = "dynorch-"
SWEPT_AFTER_S = 60.0
MOUNTS_MAX = 1 << 20
PROCS_MAX = 4 << 20
DEPTH_MAX = 32
"""Groups in groups in groups: a worker may make its own, but not without an end."""


def home() -> str:
    """Return the directory in which we may make groups: our own group's. Empty where we mayn't."""
    own = _own()
    if not own or not all(os.access(path, os.W_OK) for path in (own, f"{own}/cgroup.procs")):
        return ""
    return own if _is_ours(own) else ""


def _own() -> str:
    """Find our own group's directory. One that doesn't list us isn't it, whatever the paths say."""
    mount = next((words[1] for words in _words(MOUNTS) if words[2:3] == ["cgroup2"]), "")
    line = next((" ".join(words) for words in _words(OWN) if words[0].startswith("0::")), "")
    path = mount + line[3:].rstrip("/") if mount and line else ""
    return path if path and os.getpid() in _listed(path) else ""


def _words(path: str) -> list[list[str]]:
    text = (procfs.read(path, MOUNTS_MAX) or b"").decode("utf-8", "replace")
    return [line.split() for line in text.splitlines() if line.strip()]


def _is_ours(path: str) -> bool:
    if not os.path.isdir(SYSTEMD):
        return True
    for name in DELEGATED:
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError:
            continue
    return False


def make(path: str) -> None:
    """Make the group. OSError says why not; ENOSYS where the kernel can't kill a group."""
    os.mkdir(path, 0o755)
    if not os.path.exists(f"{path}/cgroup.kill"):
        os.rmdir(path)
        raise OSError(errno.ENOSYS, "this kernel has no cgroup.kill", path)


def fork_into(path: str) -> int:
    """Fork a child that is born in the group: see `prctl.fork_into`."""
    group = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return prctl.fork_into(group)
    finally:
        os.close(group)


def add(path: str, pid: int) -> None:
    """Move a process, with all its threads, into the group. OSError when that can't be done."""
    _write(f"{path}/cgroup.procs", str(pid).encode())


def members(path: str) -> set[int]:
    """Return the pids of everybody in the group and the groups below it; empty when it is gone."""
    found = set()
    for group in _groups(path):
        found |= _listed(group)
    return found


def kill(path: str) -> bool:
    """SIGKILL everybody in it at once, newborns included. False when it can't be had."""
    try:
        _write(f"{path}/cgroup.kill", b"1")
    except OSError:
        return False
    return True


def remove(path: str) -> bool:
    """Remove the group with those below it; False when somebody is still there."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass  # it has groups below, or somebody is there
    else:
        return True  # nearly always, and then it needn't be listed: all its files are
    for group in reversed(_groups(path)):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def sweep() -> None:
    """Remove empty groups that nobody removed, say because the machine's user killed everything.

    Young ones are spared: their tree may just be coming.
    """
    root = home()
    for name in os.listdir(root) if root else ():
        path = f"{root}/{name}"
        if name.startswith(PREFIX) and _age_s(path) > SWEPT_AFTER_S and not members(path):
            remove(path)


def _age_s(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0


def _groups(path: str) -> list[str]:
    """List the group and all below it, outer ones first."""
    found = [path]
    for depth, group in enumerate(found):
        if depth >= DEPTH_MAX:
            break
        try:
            with os.scandir(group) as entries:
                found += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return found


def _listed(path: str) -> set[int]:
    return set(map(int, (procfs.read(f"{path}/cgroup.procs", PROCS_MAX) or b"").split()))


def _write(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
