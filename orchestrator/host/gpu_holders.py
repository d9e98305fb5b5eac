"""Who holds a GPU: what a process on the machine can tell about the others.

The driver names the processes that compute on a device, but in a container its pids are the
host's, and a number that happens to exist here too is somebody else. So they are taken as they are
only where our process namespace is the machine's own. Otherwise, and when the driver names nobody,
whoever has the device's file open is named instead: it may hold memory.

What a command line says after its first words is nobody's business: secrets stand there.
"""

import os
import pwd
from pathlib import PurePath

import msgspec

from orchestrator.host import procfs
from orchestrator.host.gpu_provider import Provider
from orchestrator.host.gpus import User
from orchestrator.host.tagged import tag_of

FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""The machine's own namespace has this number (PROC_PID_INIT_INO in Linux' proc_ns.h)."""

COMMAND_MAX = 60
HOLDERS_MAX = 64
"""Processes that are looked at per device; a GPU that is open in more says nothing new."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds, or may hold, a device. `tag`: the tree's, if it carries one of ours."""

    pid: int
    sid: int
    command: str
    user: str
    used_bytes: int | None = None
    tag: str = ""


def holders(provider: Provider, uuid: str) -> list[Found]:
    """Look who holds this device, ourselves left out. Takes as long as the driver and /proc do."""
    users = provider.users(uuid)
    if not (provider.pids_are_ours or procfs.link("/proc/self/ns/pid") == FIRST_PID_NAMESPACE):
        users = []
    found = [one for user in users[:HOLDERS_MAX] if (one := look(user))]
    minor = None if found else provider.minor(uuid)
    if minor is not None:
        opened = holding_open(f"/dev/nvidia{minor}")
        found = [one for pid in opened[:HOLDERS_MAX] if (one := look(User(pid)))]
    return found


def holding_open(path: str) -> list[int]:
    """List the processes that have this file open, as far as we may see, without ourselves."""
    return [
        pid
        for pid in procfs.pids()
        if pid != os.getpid()
        and any(procfs.link(f"/proc/{pid}/fd/{fd}") == path for fd in procfs.open_fds(pid))
    ]


def look(user: User) -> Found | None:
    """Describe a process; None when it is gone, or dead."""
    one = procfs.stat(user.pid)
    if one is None or not one.alive:
        return None
    return Found(
        pid=user.pid,
        sid=one.sid,
        command=command(user.pid) or one.name,
        user=owner(user.pid),
        used_bytes=user.used_bytes,
        tag=tag_of(user.pid),
    )


def command(pid: int) -> str:
    """Return the program and, where that is an interpreter's script or module, its name."""
    words = os.fsdecode(procfs.cmdline(pid)).split("\0")
    shown = [PurePath(words[0]).name]
    if words[1:2] == ["-m"]:
        shown += words[2:3]
    elif words[1:] and not words[1].startswith("-"):
        shown.append(PurePath(words[1]).name)
    text = " ".join(word for word in shown if word)
    return "".join(char for char in text if char.isprintable())[:COMMAND_MAX]


def owner(pid: int) -> str:
    """Return the user's name, or number; empty when the process is gone."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - no path, a question
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    except OSError:
        return ""
