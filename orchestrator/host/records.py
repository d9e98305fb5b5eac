"""What a shim writes down and says, as the daemon reads it.

The shim writes plain JSON, because it is standard library only; these are the same fields with
types. An unknown field is ignored and a missing one has a default, so that a daemon understands the
shims of the version before it.
"""

import contextlib
from pathlib import Path

import msgspec
from msgspec import structs

from orchestrator.host.identity import Identity

PROTOCOL = 1
PROTOCOLS = (PROTOCOL - 1, PROTOCOL)
"""What the daemon understands of its shims: its own version, and the one before."""


class Process(msgspec.Struct, frozen=True):
    """A process of the record's boot."""

    pid: int
    starttime: int


class ExecError(msgspec.Struct, frozen=True):
    """Why the worker never ran its first instruction. `code` is the errno's name, or empty."""

    errno: int | None = None
    code: str = ""
    text: str = ""


class LifeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """life.json: who lives here. A second line has what is known since main was forked (`Born`).

    `main` is None until then. `log_from`: the log file's size when this life began.
    `pipe` is the inode of the output pipe. `started_at` is monotonic seconds of this boot,
    `started_wall` seconds since the epoch. `directory`: the life's own. `group`: the tree's control
    group, if it has one.
    """

    protocol: int = 1
    life: str
    tag: str
    boot_id: str
    shim: Process
    main: Process | None = None
    log: str
    log_from: int = 0
    pipe: int = 0
    started_at: float
    started_wall: float
    directory: str = ""
    group: str = ""

    @property
    def shim_identity(self) -> Identity:
        """The shim, so that it can't be confused with another process."""
        return Identity(self.boot_id, self.shim.pid, self.shim.starttime)


class Born(msgspec.Struct, frozen=True):
    """The second line of life.json."""

    main: Process
    group: str = ""
    pipe: int = 0


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a plain command has said of itself so far, on its notify socket.

    `alive_at` and `extended_until` are monotonic seconds; 0: nothing of the kind was said.
    `refused`: a process that said READY=1 and isn't one that may; 0 if there was none.
    """

    ready: bool = False
    stopping: bool = False
    triggered: bool = False
    status: str = ""
    alive_at: float = 0.0
    extended_until: float = 0.0
    refused: int = 0


class StateSeen(LifeRecord, frozen=True, kw_only=True, tag_field="event", tag="state"):
    """The shim's answer on connecting, and after each change.

    `phase`: running, stopping, lingering, killing or empty. `status`: main's wait status once it
    is reaped. `stuck`: who won't die, when the tree kill takes too long. `dropped_bytes`: output
    that couldn't be written to the log. `said`: what it said itself, if it was given a socket.
    """

    phase: str
    status: int | None = None
    asked: bool = False
    exec_error: ExecError | None = None
    stuck: str = ""
    dropped_bytes: int = 0
    said: Said | None = None


class MainExited(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exited"):
    """Main was reaped; its tree may live on. `status` is a wait status, `at` monotonic."""

    status: int
    at: float
    exec_error: ExecError | None = None


class TreeEmpty(LifeRecord, frozen=True, kw_only=True, tag_field="event", tag="empty"):
    """exit.json, and the last thing a shim says: nothing of this life is left.

    `status` is None when nobody saw it (the shim was killed). `killed`: processes that were sent
    SIGKILL. `unlinked`: names removed from /dev/shm. `tail`: the last 64 KiB of this life's log.
    `oom_kills` to `shm_free_bytes`: what the kernel noted, see `kernel`; `oom_kills` is None where
    it can't be read.
    """

    status: int | None = None
    exec_error: ExecError | None = None
    exited_at: float | None = None
    empty_at: float = 0.0
    asked: bool = False
    killed: int = 0
    unlinked: list[str] = []
    log_bytes: int = 0
    dropped_bytes: int = 0
    tail: str = ""
    oom_kills: int | None = None
    oom_in_cgroup: bool = False
    memory_limit_bytes: int = 0
    rss_peak_bytes: int = 0
    shm_bytes: int = 0
    shm_free_bytes: int | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="refused"):
    """The shim didn't understand a request of ours."""

    text: str


class ShimLost(msgspec.Struct, frozen=True):
    """The shim died without an exit record: its tree may live, and nobody looks after it.

    `words`: what the shim itself printed, normally nothing.
    """

    record: LifeRecord
    words: str = ""


FromShim = StateSeen | MainExited | TreeEmpty | Refused
ShimEvent = StateSeen | MainExited | TreeEmpty | Refused | ShimLost

decode_event = msgspec.json.Decoder(FromShim).decode
_decode_life = msgspec.json.Decoder(LifeRecord).decode
_decode_born = msgspec.json.Decoder(Born).decode
_decode_exit = msgspec.json.Decoder(TreeEmpty).decode


def read_life(directory: Path) -> LifeRecord | None:
    """Return who lives in this directory; None when no shim got that far."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        first, _, second = (directory / "life.json").read_bytes().partition(b"\n")
        record = _decode_life(first)
        with contextlib.suppress(msgspec.MsgspecError):  # it isn't there yet
            born = _decode_born(second)
            return structs.replace(record, main=born.main, group=born.group, pipe=born.pipe)
        return record
    return None


def read_exit(directory: Path) -> TreeEmpty | None:
    """Return the exit record; None when there is none (or one that a power loss has torn)."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return _decode_exit((directory / "exit.json").read_bytes())
    return None
