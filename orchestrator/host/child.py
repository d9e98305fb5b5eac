"""From the shim's fork to the worker's first instruction.

A worker must find the world as if it had been started alone: the default signals, three standard
descriptors and no other, its own process group (so that a worker that signals "my group" doesn't
hit its shim), its own environment and directory. What goes wrong on the way is told through a
pipe that closes by itself at exec, or when the entry function was found: an empty pipe means that
the worker runs.
"""

import errno
import fcntl
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import TracebackType

from orchestrator.host import prctl, title
from orchestrator.host.spawn import Spawn

CANNOT_EXECUTE = 126
NOT_FOUND = 127
"""Exit statuses of a command that never ran, as every shell uses them."""

DESCRIPTORS_MAX = 1 << 20
"""Beyond the highest descriptor there can be; closing all up to it is one call to the kernel."""

ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
"""What a directory of PATH says that doesn't have the command."""

TEXT_MAX = 500
"""Characters of an error's text; what a pipe takes in one piece has room for them, escaped."""

TO_DEFAULT = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
)  # fmt: skip
Entry = Callable[[bytes], int]


def let_go(keep: tuple[int, ...], errors: str) -> None:
    """Close what a shim inherited; its own last words, should there be any, go to a file."""
    errors_fd = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(errors_fd, 1)
    os.dup2(errors_fd, 2)
    close_others(keep)


def close_others(keep: tuple[int, ...]) -> None:
    """Close all descriptors but the standard ones and these."""
    low = 3
    for fd in (*sorted(keep), DESCRIPTORS_MAX):
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1


class Report:
    """Tells the shim, through the pipe, which exception ended the beginning. Never swallows it."""

    def __init__(self, pipe: int, doing: str) -> None:
        self._pipe = pipe
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            number = error.errno if isinstance(error, OSError) else None
            detail = error.strerror if isinstance(error, OSError) else str(error)
            what = (detail or "") if number else f"{type(error).__name__}: {detail}"
            message = {
                "errno": number,
                "code": errno.errorcode.get(number, "") if number else "",
                "text": f"{self._doing}: {what[:TEXT_MAX]}",
            }
            os.write(self._pipe, json.dumps(message).encode())


def read_report(text: bytes) -> dict[str, object]:
    """Read what a `Report` wrote; what isn't it is kept as it is."""
    try:
        report = json.loads(text)
    except ValueError:
        report = None
    if isinstance(report, dict):
        return report
    return {"errno": None, "code": "", "text": text.decode("utf-8", "replace")}


def settle(parent: int, output: int, keep: tuple[int, ...]) -> None:
    """Arrange the descriptors, signals and group of the process that was just forked.

    Beside the standard ones it has those of `keep` then, which no program will inherit.
    """
    os.setpgid(0, 0)
    prctl.die_with_parent()
    if os.getppid() != parent:
        os._exit(NOT_FOUND)  # the shim died before we had asked to die with it
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    close_others(keep)
    for fd in keep:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    signal.set_wakeup_fd(-1)
    # SIGTERM and its like are still blocked: one that comes now waits until it means the worker.
    for number in TO_DEFAULT:
        signal.signal(number, signal.SIG_DFL)


def run(spawn: Spawn, report: int) -> int:
    """Be the worker: never returns for a command; the exit status of an entry function."""
    title.set_tag(spawn.tag)
    title.set_title(f"dynorch: {spawn.life}")
    prctl.set_name(spawn.life.rpartition("/")[2].partition("#")[0])
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _limit_files(spawn.nofile)
    _bind(spawn)
    try:
        with Report(report, f"cannot enter the directory {spawn.cwd}"):
            os.chdir(spawn.cwd)
        if spawn.argv:
            _execute(spawn, report)
    except FileNotFoundError:
        os._exit(NOT_FOUND)
    except OSError:
        os._exit(CANNOT_EXECUTE)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Report(report, f"cannot import {spawn.entry}"):
        function = _find(spawn)
    os.close(report)
    gc.enable()
    return function(spawn.blob) or 0


def _limit_files(soft: int) -> None:
    if soft:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _bind(spawn: Spawn) -> None:
    """Keep to the cores and the memory it was given; what can't be had is no reason to die."""
    try:
        if spawn.cpus:
            os.sched_setaffinity(0, spawn.cpus)
        if spawn.numa is not None:
            prctl.prefer_memory_of(spawn.numa)
    except OSError as error:  # a container that forbids it, or a core that was taken offline
        what = f"CPUs {spawn.cpus} and the memory of NUMA node {spawn.numa}"
        os.write(2, f"dynorch: not bound to {what}: {error.strerror}\n".encode())


def _execute(spawn: Spawn, report: int) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    with Report(report, f"cannot run {spawn.argv[0]!r}"):
        execute(spawn.argv, spawn.environment())


def execute(argv: list[str], env: dict[str, str]) -> None:
    """`os.execvpe` without its import of `warnings`, which every start would pay for anew."""
    failed: OSError | None = None
    for folder in [""] if "/" in argv[0] else env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(os.path.join(folder, argv[0]), argv, env)  # noqa: S606 - no shell
        except (FileNotFoundError, NotADirectoryError) as error:
            failed = failed or error
        except OSError as error:  # it is there, and can't be run: more telling than "not found"
            failed = error if failed is None or failed.errno in ABSENT else failed
    assert failed is not None, "split returns at least one"
    raise failed


def _find(spawn: Spawn) -> Entry:
    """Import the entry function in the worker's own environment and import path."""
    os.environ.clear()
    os.environ.update(spawn.environment())
    sys.path[:0] = [entry for entry in spawn.path if entry not in sys.path]
    sys.argv = [spawn.life]
    # It was opened when the zygote began, onto something else: a line of log leaves when it's full.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
    module, _, name = spawn.entry.partition(":")
    __import__(module)
    function: Entry = getattr(sys.modules[module], name)
    return function
