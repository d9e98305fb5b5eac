"""The few system calls that Python lacks, and that an older build of it may lack.

`ctypes` is loaded once, in the zygote; every shim and worker shares its pages. The two pidfd calls
exist in `os` and `signal` only if the interpreter was built on a recent enough kernel, which that
of a foreign environment often wasn't; their numbers are the same on every architecture.
"""

import ctypes
import errno
import os
import signal
import struct

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
PIDFD_SEND_SIGNAL = 424
PIDFD_OPEN = 434
CLONE3 = 435
CLONE_INTO_CGROUP = 0x2_0000_0000
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
MPOL_PREFERRED = 1
NODES_MAX = 64
CLONE_NEWNS = 0x0002_0000
CLONE_NEWPID = 0x2000_0000
MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
MS_REC_PRIVATE = 0x4000 | 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_holding = ctypes.PyDLL(None, use_errno=True)
"""The same, for a call in which the interpreter's lock isn't let go."""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, argument: int | bytes) -> None:
    if isinstance(argument, int):
        _checked(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))
    else:
        _checked(_libc.prctl(option, ctypes.c_char_p(argument), 0, 0, 0))


def become_subreaper() -> None:
    """Adopt every descendant whose parent dies, instead of leaving it to process 1."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Get this signal when the *thread* that forked us ends. Lost on fork; kept over exec."""
    _prctl(PR_SET_PDEATHSIG, number)


def prefer_memory_of(node: int) -> None:
    """Take memory from this NUMA node as long as it has any. Kept over fork and exec."""
    number = SET_MEMPOLICY.get(os.uname().machine)
    if number is None or node >= NODES_MAX:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mask = ctypes.c_ulong(1 << node)
    # The kernel takes one bit less than it is told of.
    _checked(_libc.syscall(number, MPOL_PREFERRED, ctypes.byref(mask), NODES_MAX + 1))


def set_name(name: str) -> None:
    """Set the name shown by `top` and in /proc/PID/comm; the kernel keeps 15 bytes."""
    _prctl(PR_SET_NAME, name.encode("utf-8", "replace"))


def fork_into(cgroup: int) -> int:
    """Fork a child that is born in the control group of this descriptor; 0 in the child.

    It goes past the C library, which then knows the child by its parent's number: the child must
    execute a program soon, and we must have one thread. OSError where the kernel, or a container's
    filter, doesn't have it.
    """
    words = (CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, cgroup)
    request = struct.pack("=11Q", *words)
    return _checked(_holding.syscall(CLONE3, request, len(request)))


def unshare(flags: int) -> None:
    """Leave a namespace; with CLONE_NEWPID only the next child does, as the first of its own."""
    _checked(_libc.unshare(flags))


def keep_mounts_private() -> None:
    """In a mount namespace of our own: what is mounted from now on is seen by nobody outside."""
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC_PRIVATE), None))


def mount_proc() -> None:
    """Mount a /proc that shows our PID namespace."""
    flags = ctypes.c_ulong(MS_NOSUID_NODEV_NOEXEC)
    _checked(_libc.mount(b"proc", b"/proc", b"proc", flags, None))


def pidfd_open(pid: int) -> int:
    """Return a descriptor that means this process and never another one with its pid."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _checked(_libc.syscall(PIDFD_OPEN, pid, 0))


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """Signal what the descriptor means; ProcessLookupError when it is gone."""
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, number)
    else:
        _checked(_libc.syscall(PIDFD_SEND_SIGNAL, pidfd, number, None, 0))
