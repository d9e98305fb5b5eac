"""Trees by their tag: whose a process is that was found somewhere, and the end of lost ones.

Every process of a tree carries the life's id and a nonce in its environment. Half of the nonce is
chance, half says which run directory on which machine it comes from. So an orphan whose records
are all lost can still be told from a worker of another daemon of the same user, which must never
be touched.
"""

import hashlib
import os
import secrets
import time
from pathlib import Path

from orchestrator.host import procfs, title, tree
from orchestrator.host.shm import Leftovers

CHANCE = 8
"""Hexadecimal digits of a nonce that are chance; as many again are its origin."""


def make_nonce(root: Path, life: str) -> str:
    """Make a nonce for a life of the daemon in this run directory."""
    chance = secrets.token_hex(CHANCE // 2)
    return chance + _origin(root, life, chance)


def is_from(root: Path, tag: str) -> bool:
    """Tell whether this tag was made in this run directory, by whichever daemon."""
    life, _, nonce = tag.rpartition("/")
    chance, origin = nonce[:CHANCE], nonce[CHANCE:]
    return bool(life and origin) and origin == _origin(root, life, chance)


def _origin(root: Path, life: str, chance: str) -> str:
    words = (os.uname().nodename, str(os.getuid()), str(root), life, chance)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:CHANCE]


def tag_of(pid: int) -> str:
    """Return the tag that a process carries; empty when it has none or hides it."""
    name = f"{title.TAG_NAME}=".encode()
    for entry in (procfs.read(f"/proc/{pid}/environ", 1 << 20) or b"").split(b"\0"):
        if entry.startswith(name):
            return os.fsdecode(entry[len(name) :]).rstrip("-")
    return ""


def carrying(tag: str) -> list[procfs.Stat]:
    """Return everybody who carries this tag, and whoever descends from them."""
    everything = procfs.every()
    entry = title.entry(tag)
    roots = {pid for pid in everything if pid != os.getpid() and procfs.environ_has(pid, entry)}
    return [everything[pid] for pid in roots] + procfs.below(roots, everything)


class TagKill:
    """The end of a tree of which nothing is known but its tag."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._leftovers = Leftovers(time.time())
        self._kill = tree.TreeKill(self._leftovers, time.monotonic())

    def run_pass(self) -> bool:
        """Kill whoever is there; True once nobody is."""
        self._kill.run_pass(carrying(self._tag), time.monotonic())
        if self._kill.stuck:
            return False
        self._leftovers.remove()
        return True
