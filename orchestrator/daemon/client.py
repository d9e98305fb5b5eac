"""How a verb talks to the daemon, and how the daemon comes to be.

Plain blocking sockets: a verb is one question and one answer, or a stream of events. Whether a
daemon lives is asked of its lock file, never guessed from a timeout, so `status` can say "gone"
at once, and a hung daemon is told apart from an absent one.
"""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import zmq

from orchestrator.daemon.absence import DaemonNotStartedError, DaemonSilentError, NoDaemonError
from orchestrator.host.lock import holder
from orchestrator.wire import events, messages
from orchestrator.wire.sockets import Context, make_socket

Data = TypeVar("Data")

LOG_BYTES_MAX = 1 << 20
"""The daemon's own log, where only bugs are written, begins anew when it is larger than this."""

START_S = 30.0
ANSWER_S = 10.0
LOOK_INTO_S = 900.0
"""Answers for which a file is looked into: an engine may have to be imported first."""
SLOW_S = 2.0
GLANCE_S = 0.5
"""While waiting for an answer, see this often whether there is still somebody to give it."""


def daemon_pid(run_dir: Path) -> int | None:
    """The pid of the daemon of this run directory, or None when there is none."""
    return holder(run_dir / "daemon.lock")


HANDOVER_S, HANDOVER_LOOK_S = 30.0, 0.02
"""While one daemon takes over from another, a verb waits this long, and looks this often."""


@contextlib.contextmanager
def _death_of(pid: int) -> Iterator[int | None]:
    """Give a descriptor that becomes readable when this process dies; None: it is dead."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


class Client:
    """One connection to the daemon of a run directory. Use as a context manager."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._context: Context = zmq.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.destroy(linger=0)

    def call(
        self,
        name: str,
        timeout_s: float = ANSWER_S,
        on_slow: Callable[[], None] | None = None,
        **args: Any,
    ) -> messages.Reply:
        """Ask one verb and wait for its answer; `on_slow` is called once when that takes a while.

        Raises NoDaemonError, or DaemonSilentError after `timeout_s` seconds.
        """
        pid = daemon_pid(self._run_dir) or self._successor()
        socket = make_socket(self._context, zmq.DEALER)
        try:
            socket.connect(f"ipc://{self._run_dir}/control.sock")
            socket.send(messages.encode(messages.Verb(name, args)))
            if not self._hears(socket, pid, timeout_s, on_slow):
                raise DaemonSilentError(
                    f"the daemon (pid {pid}) did not answer `{name}` within {timeout_s:g} s"
                )
            return messages.decode_reply(socket.recv())
        finally:
            socket.close()

    def _hears(
        self,
        socket: zmq.Socket[bytes],
        pid: int,
        timeout_s: float,
        on_slow: Callable[[], None] | None,
    ) -> bool:
        """Wait for an answer; NoDaemonError as soon as there is nobody to give one."""
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        with _death_of(pid) as death:
            if death is not None:
                poller.register(death, zmq.POLLIN)
            began = time.monotonic()
            while time.monotonic() <= began + timeout_s:
                if on_slow is not None and time.monotonic() > began + SLOW_S:
                    on_slow()
                    on_slow = None
                news = dict(poller.poll(round(GLANCE_S * 1000)))
                gone = death in news or daemon_pid(self._run_dir) != pid
                if socket in news or socket.poll(0):  # be it its last words
                    return True
                if gone:
                    raise NoDaemonError
        return False

    def _successor(self) -> int:
        """The pid of the daemon that is just taking over; NoDaemonError when none is."""
        handover = self._run_dir / "handover"
        while True:
            try:
                left_s = handover.stat().st_mtime + HANDOVER_S - time.time()
            except OSError:
                left_s = -1.0
            pid = daemon_pid(self._run_dir)
            if pid is not None:
                return pid
            if not 0 < left_s <= HANDOVER_S:
                raise NoDaemonError
            select.select([], [], [], HANDOVER_LOOK_S)

    def subscribe(self, topic: bytes = events.TOPIC) -> "Subscription":
        """Listen to the event stream from now on."""
        socket = make_socket(self._context, zmq.SUB)
        socket.subscribe(topic)
        socket.connect(f"ipc://{self._run_dir}/events.sock")
        return Subscription(socket)


class Subscription:
    """Events as they come; what overflows the socket's high-water mark stays in the journal."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def next(self, timeout_s: float) -> events.Event | None:
        """The next event, or None after `timeout_s` seconds."""
        if not self.socket.poll(round(timeout_s * 1000)):
            return None
        _, payload = self.socket.recv_multipart()
        return events.decode(payload)

    def pending(self) -> Iterator[events.Event]:
        """What is here already."""
        while (event := self.next(0)) is not None:
            yield event


def spawn_daemon(run_dir: Path, state_dir: Path, *how: str) -> None:
    """Start a daemon in the background and wait until it answers, fails, or START_S is over.

    `how`: more of its arguments.

    It says over an inherited pipe when it listens, so there is nothing to poll. Raises
    DaemonNotStartedError with the daemon's own last line.
    """
    log_path = _log(state_dir)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ours, theirs = os.pipe()
    _execute(run_dir, state_dir, log, "--ready-fd", theirs, *how)
    os.close(log)
    said = _wait_until_ready(ours)
    if said != "ready":
        raise DaemonNotStartedError(said or f"the daemon did not start: {_last_line(log_path)}")


class Standby:
    """A daemon that makes its imports while we make ours, and then waits for our word.

    Until then it has touched nothing, and without it, it leaves as it came.
    """

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._ready, ready_end = os.pipe()
        go_end, self._go = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        _execute(run_dir, state_dir, null, "--ready-fd", ready_end, "--go-fd", go_end)
        os.close(null)

    def start(self) -> bool:
        """Let it be the daemon, and wait as in `spawn_daemon`; False when it isn't there any more.

        Its word is where its log is.
        """
        log_path = _log(self._state_dir)
        try:
            os.write(self._go, os.fsencode(log_path))
        except BrokenPipeError:
            return False
        os.close(self._go)
        self._go = -1
        ready, self._ready = self._ready, -1
        said = _wait_until_ready(ready)
        if said not in {"ready", ""}:
            raise DaemonNotStartedError(said)
        return bool(said)

    def cancel(self) -> None:
        """Let it go, unless it was started."""
        for handle in (self._go, self._ready):
            if handle >= 0:
                os.close(handle)
        self._go = self._ready = -1


def _log(state_dir: Path) -> Path:
    """Return where the daemon's own log is to go, with room for it made."""
    log_path = state_dir / "logs" / "daemon.log"
    log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
        log_path.replace(log_path.with_name("daemon.log.1"))
    return log_path


def _execute(run_dir: Path, state_dir: Path, output: int, *how: object) -> None:
    """Execute a daemon. Descriptors among its arguments are handed over, and closed here."""
    handed = [each for each in how if isinstance(each, int)]
    for each in handed:
        os.set_inheritable(each, True)
    argv = [sys.executable, "-m", "orchestrator.daemon", *map(str, how)]
    environ = dict(os.environ, DYNORCH_RUN_DIR=str(run_dir), DYNORCH_STATE_DIR=str(state_dir))
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
               (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]  # fmt: skip
    os.posix_spawn(sys.executable, argv, environ, file_actions=actions, setsid=True)
    for each in handed:
        os.close(each)


def _wait_until_ready(handle: int) -> str:
    try:
        return _read_until_closed(handle, START_S)
    finally:
        os.close(handle)


def _last_line(log_path: Path) -> str:
    """What it said last, and where the rest is."""
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1]} (see {log_path})" if lines else f"see {log_path}"


def _read_until_closed(handle: int, within_s: float) -> str:
    poller = zmq.Poller()
    poller.register(handle, zmq.POLLIN)
    said = b""
    while poller.poll(round(within_s * 1000)):
        data = os.read(handle, 4096)
        if not data:
            break
        said += data
    return said.decode(errors="replace").strip()


def call_or_start(
    client: Client,
    run_dir: Path,
    state_dir: Path,
    name: str,
    *,
    standby: Standby | None = None,
    **args: Any,
) -> messages.Reply:
    """Ask a verb of the daemon, starting one first if there is none: `standby`, if that is well.

    `args`: see `Client.call`.
    """
    try:
        return client.call(name, **args)
    except NoDaemonError:
        try:
            if standby is None or not standby.start():
                spawn_daemon(run_dir, state_dir)
        except DaemonNotStartedError:
            if daemon_pid(run_dir) is None:  # else somebody else has just started one
                raise
        return client.call(name, **args)


def decode_data(reply: messages.Reply, kind: type[Data]) -> Data:
    """A reply's `data` as a struct of `kind`; RuntimeError with its text when it is a refusal."""
    if reply.code:
        raise RuntimeError(reply.text)
    return msgspec.convert(reply.data, kind)
