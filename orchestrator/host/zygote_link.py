"""The daemon's end of a zygote: start it, ask it for shims.

A zygote is started once and kept; the imports it makes are what a restart saves. Requests that
come before it is ready wait in its socket. One that died is started again with the next request,
and the shims it had forked live on as children of the daemon. One that doesn't answer in time is
killed, so that nothing is born that nobody waits for any more.
"""

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orchestrator.host import framing, title
from orchestrator.host.identity import Identity
from orchestrator.host.reaper import Reaper
from orchestrator.host.spawn import Spawn

PENDING_MAX = 1024
"""Requests without an answer; one more is refused."""

PRELOAD_S = 600.0
"""What the imports get; a cold page cache on a slow disk has been seen to need a minute."""

ANSWER_S = 30.0
"""What a zygote gets for one shim, once it has made its imports."""

CODE = """import sys
if sys.version_info < (3, 11):
    import marshal, os
    text = "%s is Python %d.%d, and workers need 3.11 or newer"
    text %= (sys.executable, sys.version_info[0], sys.version_info[1])
    body = marshal.dumps({{"failed": text}}, 2)
    os.write(3, len(body).to_bytes(4, "big") + body)
    sys.exit(1)
sys.path[:] = {path!r} + [p for p in sys.path if p]
from orchestrator.host.zygote import main
main()
"""
"""An interpreter that is too old to read the rest says so, as `framing` would."""
BARE_FLAGS = ("-I", "-S", "-X", "utf8")
FULL_FLAGS = ("-X", "utf8")


class ZygoteError(Exception):
    """No shim was born, and none will be of this request. The text is a sentence."""


class ZygoteLink:
    """One zygote, the present one. Lives in one asyncio loop."""

    def __init__(
        self,
        reaper: Reaper,
        record: Callable[[Identity], None] = lambda _: None,
        log_path: Path | None = None,
    ) -> None:
        """`record` is told of each zygote before it can fork; its own output goes to `log_path`."""
        self._reaper = reaper
        self._record = record
        self._log_path = log_path
        self._command: tuple[str, str, dict[str, str], list[str], str] | None = None
        self._home = ""
        self._socket: socket.socket | None = None
        self._unpacker = framing.Unpacker()
        self._unsent = bytearray()
        self._pending: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._serial = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self.versions: dict[str, str] = {}
        self.pid = 0
        self.ready = False
        self.preload_s = 0.0

    @property
    def started(self) -> bool:
        """Whether there is a zygote now, ready or not."""
        return self._socket is not None

    def start(
        self,
        profile: str,
        python: str,
        env: dict[str, str],
        path: list[str],
        preload: str = "",
        *,
        home: str = "",
    ) -> None:
        """Start a zygote; returns at once, the imports go on in it.

        `python`: the interpreter. `path`: put before its sys.path; must lead to our two packages.
        `preload`: "module:function" called once, or nothing: then the interpreter runs isolated
        and without site packages. `home`: where its spare workers are born in control groups of
        their own; such can only be commands. ZygoteError when it can't even be executed.
        """
        assert self._socket is None, "already started"
        self._command = (profile, python, env, path, preload)
        self._home = home
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self.pid = self._execute(theirs.fileno())
        except OSError as error:
            ours.close()
            raise ZygoteError(f"cannot run {python}: {error.strerror}") from error
        finally:
            theirs.close()
        self._reaper.own(self.pid, partial(self._died, self.pid))
        try:
            self._record(Identity.of(self.pid))
        except OSError as error:
            # Without a record the next daemon couldn't end it, and a spawn might slip in.
            os.kill(self.pid, signal.SIGKILL)
            ours.close()
            raise ZygoteError(f"cannot write down a zygote: {error.strerror}") from error
        self._socket = ours
        self._unpacker = framing.Unpacker()
        self._unsent.clear()
        self.ready = False
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._read)
        self._arm(PRELOAD_S)

    def spawn(self, request: Spawn) -> asyncio.Future[int]:
        """Ask for a worker; the future is its shim's pid, or a ZygoteError.

        When it is done, `ShimLink.connect` finds the shim in the life's directory.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if len(self._pending) >= PENDING_MAX:
            answer.set_exception(ZygoteError(f"{PENDING_MAX} spawns are already waiting"))
            return answer
        if self._socket is None:
            assert self._command is not None, "never started"
            try:
                self.start(*self._command, home=self._home)
            except ZygoteError as error:
                answer.set_exception(error)
                return answer
        if self.pid:
            os.kill(self.pid, signal.SIGCONT)  # whoever has stopped it, it is needed now
        self._serial += 1
        self._pending.append((self._serial, answer))
        self._unsent += framing.pack({"serial": self._serial, "spawn": request.to_fields()})
        self._write()
        if self.ready and len(self._pending) == 1:
            self._arm(ANSWER_S)
        return answer

    def until_ready(self) -> asyncio.Future[None]:
        """Return a future that is done when its imports are made, or fails with a ZygoteError.

        One that died is started again for that.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            if self._socket is None:
                assert self._command is not None, "never started"
                self.start(*self._command, home=self._home)
        except ZygoteError as error:
            done.set_exception(error)
            return done
        if self.ready:
            done.set_result(None)
        else:
            self._waiting.append(done)
        return done

    def close(self) -> None:
        """Let it go: it ends when its socket closes. What was asked for fails."""
        self._hear_last()
        self._fail("the zygote was closed")
        self._disconnect()

    def _hear_last(self) -> None:
        """Take the answers that lie in the socket: those shims have forked their workers.

        One that hasn't answered yet can't any more, and leaves.
        """
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RD)
        while self._socket is not None:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return  # it died with requests unread
            if not data:
                return
            for message in self._unpacker.feed(data):
                self._take(message)

    def _execute(self, fd: int) -> int:
        assert self._command is not None
        profile, python, env, path, preload = self._command
        flags = FULL_FLAGS if preload else BARE_FLAGS
        code = CODE.format(path=path)
        argv = [python, *flags, "-c", code, "3", profile, preload, self._home, title.PADDING]
        output = str(self._log_path or os.devnull)
        open_output = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_DUP2, fd, 3),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, output, open_output, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        # The tag's placeholder is what each shim writes its tree's tag over.
        environment = {**env, title.TAG_NAME: title.PLACEHOLDER}
        return os.posix_spawn(python, argv, environment, file_actions=actions, setsid=True)

    def _write(self) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._socket.fileno())
        while self._unsent:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                loop.add_writer(self._socket.fileno(), self._write)
                return
            except OSError:
                return  # it is dead: the reader will see it

    def _read(self) -> bool:
        """Take one piece of what it sent; False when there is nothing more."""
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._fail(f"the zygote died{self._where()}")
            self._disconnect()
            return False
        for message in self._unpacker.feed(data):
            self._take(message)
        return True

    def _take(self, message: dict[str, object]) -> None:
        match message:
            case {"hello": _, "versions": dict() as versions, "preload_s": float() as preload_s}:
                self.ready = True
                self.preload_s = preload_s
                self.versions = versions
                self._settle(None)
            case {"failed": str() as text}:
                self._fail(f"the zygote could not get ready: {text}")
                self._disconnect()
                return
            case {"serial": serial}:
                expected, answer = self._pending.popleft()
                assert serial == expected, f"answer {serial} to request {expected}"
                self._resolve(answer, message)
            case _:
                raise AssertionError(f"not a zygote's message: {message}")
        self._arm(ANSWER_S if self._pending else None)

    @staticmethod
    def _resolve(answer: asyncio.Future[int], message: dict[str, object]) -> None:
        if answer.done():
            return  # the caller has given up; the shim is in its directory all the same
        match message:
            case {"pid": int() as pid}:
                answer.set_result(pid)
            case _:
                answer.set_exception(ZygoteError(str(message.get("error"))))

    def _died(self, pid: int, status: int) -> None:
        """Take its exit. Answers that it had sent may still lie in the socket."""
        if pid != self.pid:
            return  # an earlier one, whose end was seen from its socket
        self.pid = 0
        self._hear_last()
        code = os.waitstatus_to_exitcode(status)
        self._fail(f"the zygote died (exit status {code}){self._where()}")
        self._disconnect()

    def _arm(self, within_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if within_s is not None:
            self._timer = asyncio.get_running_loop().call_later(within_s, self._overdue, within_s)

    def _overdue(self, within_s: float) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # our child, and not reaped yet
        self._hear_last()
        self._fail(f"the zygote didn't answer within {within_s:g} s and was killed{self._where()}")
        self._disconnect()

    def _settle(self, error: ZygoteError | None) -> None:
        """Tell those who wait for the imports."""
        for done in self._waiting:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._waiting.clear()

    def _fail(self, why: str) -> None:
        self._settle(ZygoteError(why))
        while self._pending:
            _, answer = self._pending.popleft()
            if not answer.done():
                answer.set_exception(ZygoteError(why))

    def _disconnect(self) -> None:
        self._arm(None)
        self.ready = False
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _where(self) -> str:
        return f"; see {self._log_path}" if self._log_path else ""
