"""What EngineCore and its workers say of themselves, heard in the process that hosts them.

vLLM builds an engine in one blocking call and afterwards reports failures as "see root cause
above": above, in the log, of another process. So each process of the engine tells its host (see
`telling`) through a named pipe in the life's private directory, which a thread here reads: what the
start is doing and how far it is, who died, and of what.

While the tidings are open, processes forked from here tell and are guarded (see `guard`); for
spawned ones an environment variable says where to tell, and vLLM's plugin mechanism has `plugin`
called in them.
"""

import contextlib
import os
import select
import threading
from pathlib import Path
from typing import NamedTuple

from workers.runtime.engine import Report
from workers.vllm import guard
from workers.vllm.plugin import ENV, NAME
from workers.vllm.telling import Teller

CAUSES_MAX = 20
"""Root causes kept; only the first ones can be the root."""
PLUGINS_ENV = "VLLM_PLUGINS"
"""Which plugins vLLM loads, if not all."""


class LostWorker(NamedTuple):
    """EngineCore saw one of its workers die."""

    name: str
    exitcode: int


class Cause(NamedTuple):
    """An exception that ended a process: which process, and what it said."""

    process: str
    text: str


class Tidings:
    """Listens from `open` to `close`; the pipe lies in `folder`."""

    def __init__(self, report: Report, folder: Path) -> None:
        self.lost: list[LostWorker] = []
        self.causes: list[Cause] = []
        self._report = report
        self._pipe = folder / "tidings"
        self._teller = Teller(-1, os.getpid())
        self._thread = threading.Thread(target=self._listen, name="tidings", daemon=True)

    def open(self) -> None:
        """Begin: whatever is said from now on, here or in a process of the engine, is heard."""
        os.mkfifo(self._pipe, 0o600)
        # For both directions: so it has a writer as long as we read, and never ends.
        self._fd = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._teller.fd = self._fd
        self._teller.install()
        host, started = os.getpid(), guard.starttime(os.getpid())
        os.environ[ENV] = f"{host}:{started}:{self._pipe}"
        if os.environ.get(PLUGINS_ENV):
            os.environ[PLUGINS_ENV] += f",{NAME}"
        # A hook can't be taken back; this one does nothing once we are closed.
        os.register_at_fork(after_in_child=lambda: self._guard(host, started))
        self._thread.start()

    def close(self) -> None:
        """End; idempotent."""
        if self._teller.fd < 0:
            return
        os.environ.pop(ENV, None)
        os.write(self._fd, b"end\t\t\n")
        self._thread.join(1.0)
        self._teller.fd = -1
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._pipe.unlink()

    def root_cause(self) -> str:
        """Return what the innermost process said first; empty if none said anything.

        The host only repeats what EngineCore told it, and EngineCore what its worker did.
        """
        for prefix in ("VllmWorker", "EngineCore"):
            for cause in self.causes:
                if cause.process.startswith(prefix):
                    return cause.text
        return ""

    def _guard(self, host: int, started: int) -> None:
        if self._teller.fd >= 0:
            guard.start(host, started)

    def _listen(self) -> None:
        buffered = b""
        while True:
            select.select([self._fd], [], [])
            with contextlib.suppress(BlockingIOError):
                buffered += os.read(self._fd, 65536)
            *lines, buffered = buffered.split(b"\n")
            for line in lines:
                kind, process, text = line.decode(errors="replace").split("\t", 2)
                if kind == "end":
                    return
                self._hear(kind, process, text)

    def _hear(self, kind: str, process: str, text: str) -> None:
        if kind == "phase":
            self._report(text, None)
        elif kind == "percent":
            percent, _, doing = text.partition(" ")
            self._report(doing, float(percent))
        elif kind == "lost" and len(self.lost) < CAUSES_MAX:
            name, exitcode = text.split(" ")
            self.lost.append(LostWorker(name, int(exitcode)))
        elif kind == "cause" and len(self.causes) < CAUSES_MAX:
            self.causes.append(Cause(process, text))
