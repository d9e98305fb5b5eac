"""What EngineCore and its workers log, heard in the process that hosts them.

vLLM builds an engine in one blocking call and afterwards reports failures as "see root cause
above": above, in the log, of another process. Two kinds of records are worth catching while they
are made: the marks of progress, and the root causes. A log record factory sees every record
before any handler and survives vLLM's reconfiguration of its loggers; forked children inherit it,
and write what matters as one short line into a pipe, which a thread here reads.

Spawned children inherit nothing, so then there are no tidings, and the daemon has the log alone.
Lines are shorter than PIPE_BUF, so they never mix; into a full pipe nothing is written.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import select
import threading
from collections.abc import Callable
from multiprocessing import popen_fork
from multiprocessing import process as processes
from typing import Any, NamedTuple

from workers.runtime.engine import Report

LINE_MAX = 1000
CAUSES_MAX = 20
"""Root causes kept; only the first ones can be the root."""

PHASES = (
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Time spent downloading weights"), "weights downloaded, loading them"),
    (re.compile(r"Loading weights took"), "weights loaded"),
    (re.compile(r"Starting torch\.compile|torch\.compile took"), "compiling"),
    (re.compile(r"KV cache size:"), "KV cache allocated, warming up"),
    (re.compile(r"Graph capturing finished"), "CUDA graphs captured"),
    (re.compile(r"init engine \(profile"), "engine started"),
)
_LOST_WORKER = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")
_FAILED = re.compile(r"(WorkerProc|EngineCore) (failed|encountered a fatal error)")


class LostWorker(NamedTuple):
    """EngineCore saw one of its workers die."""

    name: str
    exitcode: int


class Cause(NamedTuple):
    """An exception that ended a process: which process, and what it said."""

    process: str
    text: str


class Tidings:
    """Listens from `open` to `close`. Forked children speak from their first log record on."""

    def __init__(self, report: Report) -> None:
        self.lost: list[LostWorker] = []
        self.causes: list[Cause] = []
        self._report = report
        self._pid = os.getpid()
        self._read = self._write = -1
        self._thread = threading.Thread(target=self._listen, name="tidings", daemon=True)

    def open(self) -> None:
        """Begin: every log record made from now on, here or in a fork, is looked at."""
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        logging.setLogRecordFactory(_Factory(logging.getLogRecordFactory(), self._look))
        _watch_exits(self._lost_child)
        self._thread.start()

    def close(self) -> None:
        """End; idempotent."""
        if self._write < 0:
            return
        os.write(self._write, b"end\t\t\n")
        self._thread.join(1.0)
        write, self._write = self._write, -1
        os.close(write)

    def root_cause(self) -> str:
        """Return what the innermost process said first; empty if none said anything.

        The host only repeats what EngineCore told it, and EngineCore what its worker did.
        """
        for prefix in ("VllmWorker", "EngineCore"):
            for cause in self.causes:
                if cause.process.startswith(prefix):
                    return cause.text
        return ""

    def _look(self, record: logging.LogRecord) -> None:
        """Pass on what matters; runs in whichever process logs, in the middle of its work."""
        try:
            message = record.getMessage()
        except (KeyError, TypeError, ValueError):
            # Somebody's format string doesn't fit its arguments; logging itself reports that.
            return
        if record.levelno < logging.ERROR:
            for mark, text in PHASES:
                if mark.search(message):
                    self._tell("phase", text)
                    return
        elif lost := _LOST_WORKER.search(message):
            self._tell("lost", f"{lost[1]} {lost[2]}")
        elif _FAILED.search(message) and record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            first = next(iter(str(error).strip().splitlines()), "")
            self._tell("cause", f"{type(error).__name__}: {first}")

    def _lost_child(self, name: str, exitcode: int) -> None:
        """Pass on that a child of a child of ours ended badly; our own we see ourselves."""
        if os.getpid() != self._pid:
            self._tell("lost", f"{name} {exitcode}")

    def _tell(self, kind: str, text: str) -> None:
        if self._write < 0:
            return
        process = multiprocessing.current_process().name
        line = f"{kind}\t{process}\t{' '.join(text.split())}".encode()[:LINE_MAX] + b"\n"
        with contextlib.suppress(OSError):
            os.write(self._write, line)

    def _listen(self) -> None:
        buffered = b""
        while True:
            select.select([self._read], [], [])
            buffered += os.read(self._read, 65536)
            *lines, buffered = buffered.split(b"\n")
            for line in lines:
                kind, process, text = line.decode(errors="replace").split("\t", 2)
                if kind == "end":
                    os.close(self._read)
                    return
                self._hear(kind, process, text)

    def _hear(self, kind: str, process: str, text: str) -> None:
        if kind == "phase":
            self._report(text, None)
        elif kind == "lost" and len(self.lost) < CAUSES_MAX:
            name, exitcode = text.split(" ")
            self.lost.append(LostWorker(name, int(exitcode)))
        elif kind == "cause" and len(self.causes) < CAUSES_MAX:
            self.causes.append(Cause(process, text))


def _watch_exits(tell: Callable[[str, int], None]) -> None:
    """Let whoever reaps a child, here or in a fork, tell how it ended if it ended badly.

    EngineCore logs a dead worker only if it notices before it has begun to shut down for want of
    that worker. But it asks for the worker's exit code on either way, and that goes through here.
    """
    inner = popen_fork.Popen.poll

    def poll(self: popen_fork.Popen, flag: int = os.WNOHANG) -> int | None:
        known = self.returncode is not None
        code = inner(self, flag)
        if code and not known:
            children = list(getattr(processes, "_children", ()))
            names = [child.name for child in children if getattr(child, "_popen", None) is self]
            tell(names[0] if names else "VllmWorker", code)
        return code

    popen_fork.Popen.poll = poll  # type: ignore[method-assign]


class _Factory:
    """A record factory that lets somebody look at each record of vLLM's."""

    def __init__(
        self,
        inner: Callable[..., logging.LogRecord],
        look: Callable[[logging.LogRecord], None],
    ) -> None:
        self._inner = inner
        self._look = look

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._inner(name, *args, **kwargs)
        if name.startswith("vllm"):
            self._look(record)
        return record
