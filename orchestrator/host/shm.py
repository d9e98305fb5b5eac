"""Names in /dev/shm that a tree would leave behind.

POSIX shared memory and named semaphores outlive their processes. Python's resource tracker removes
those of its own family if it is given the time; what a killed tree still leaves is removed here.
The names are noted while the tree still lives, from its memory maps, because afterwards nothing
says whose they were. A name goes only when nobody maps it any more, it is ours by uid, and it is
either of a kind that only such families make, or was made (or changed) by this life and mapped
writable and shared: model weights that somebody staged in /dev/shm match neither.

What was noted is written down before anybody is killed, and once when an engine has become ready:
should a whole tree die together with its shim, so that nobody could look any more, the daemon
knows the names all the same. Nobody looks from time to time: an idle worker costs nothing.
"""

import json
import os

from orchestrator.host import procfs
from orchestrator.host.whole_file import write_whole

ROOT = "/dev/shm"  # noqa: S108 - this is the place itself, not a temporary file of ours
FAMILIES = ("psm_", "sem.mp-", "nccl-", "sem.loky-")
CLOCK_SLACK_S = 0.05
"""A file system stamps with the time of the last tick, which lies a little back."""

MAPS_MAX = 64 << 20
"""Bytes of one memory map that are read; a bigger one is cut."""


NAMES = "names.json"
"""The file of a life's directory in which they are kept."""

NAMES_MAX = 1 << 20


class Mapped:
    """A name seen in a map; `shared`: writable for all who map it."""

    __slots__ = ("name", "shared")

    def __init__(self, name: str, *, shared: bool) -> None:
        self.name = name
        self.shared = shared


def mapped(pid: int) -> list[Mapped]:
    """Return the names directly below /dev/shm that the process maps, without deleted ones."""
    found = []
    prefix = f"{ROOT}/".encode()
    for line in (procfs.read(f"/proc/{pid}/maps", MAPS_MAX) or b"").splitlines():
        at = line.find(prefix)
        if at < 0 or line.endswith(b" (deleted)"):
            continue
        name = line[at + len(prefix) :]
        if b"/" not in name:
            shared = line.split(None, 2)[1] == b"rw-s"
            found.append(Mapped(os.fsdecode(name), shared=shared))
    return found


class Leftovers:
    """Notes what a tree maps, and removes afterwards what nobody needs.

    `since`: wall-clock seconds when the life began; a name of no known family that is older isn't
    its own. `path`: where `keep` writes and `recall` reads what was noted.
    """

    def __init__(self, since: float, path: str = "") -> None:
        self._since = since - CLOCK_SLACK_S
        self._path = path
        self._noted: dict[str, bool] = {}
        self._kept: dict[str, bool] = {}

    def note(self, pid: int) -> None:
        """Remember what this process maps. Call it before the process is killed."""
        for one in mapped(pid):
            self._noted[one.name] = self._noted.get(one.name, False) or one.shared

    def keep(self) -> None:
        """Write it down, if there is anything new. On a full disk it isn't."""
        if not self._path or self._noted == self._kept:
            return
        try:
            write_whole(self._path, json.dumps(self._noted).encode())
        except OSError:
            return
        self._kept = dict(self._noted)

    def recall(self) -> None:
        """Remember what an earlier process has written down, if it has."""
        try:
            found = json.loads(procfs.read(self._path, NAMES_MAX) or b"{}")
        except ValueError:
            return
        if isinstance(found, dict):
            known = {str(name): shared is True for name, shared in found.items()}
            self._noted = {name: one for name, one in known.items() if "/" not in name}

    def remove(self) -> list[str]:
        """Unlink what was noted and is mapped by nobody now; returns the names."""
        ours = [name for name, shared in self._noted.items() if self._is_ours(name, shared=shared)]
        if not ours:
            return []
        in_use = {one.name for pid in procfs.pids() for one in mapped(pid)}
        return [name for name in sorted(ours) if name not in in_use and _unlink(name)]

    def _is_ours(self, name: str, *, shared: bool) -> bool:
        try:
            found = os.stat(f"{ROOT}/{name}", follow_symlinks=False)
        except OSError:
            return False
        if found.st_uid != os.getuid():
            return False
        return name.startswith(FAMILIES) or (shared and found.st_ctime >= self._since)


def _unlink(name: str) -> bool:
    try:
        os.unlink(f"{ROOT}/{name}")
    except OSError:
        return False
    return True
