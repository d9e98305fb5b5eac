"""What each process of the engine does so that its host hears of it: a few hooks and a named pipe.

Two kinds of log records are worth catching while they are made: the marks of progress, and the
root causes. A log record factory sees every record before any handler and survives vLLM's
reconfiguration of its loggers. Progress bars tell how far the weights are, and the capture of CUDA
graphs. Who reaps a child tells how it ended, if it ended badly. A thread that found its port taken
tells it and ends its process, which would else wait for that thread for ever. Each of these is one
short line.

Installed in the host before it forks its engine, so that forks have it all; a spawned process
inherits nothing and is given it by `plugin`. Lines are shorter than PIPE_BUF, so they never mix;
into a full pipe nothing is written, so nobody ever waits for a host that doesn't read.
"""

import contextlib
import errno
import importlib
import logging
import multiprocessing
import os
import re
import sys
import threading
from collections.abc import Callable
from multiprocessing import popen_fork
from multiprocessing import process as processes
from typing import Any

LINE_MAX = 1000

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
BARS = (
    (re.compile(r"[Ll]oading .*shards"), "loading weights"),
    (re.compile(r"Capturing CUDA graphs"), "capturing CUDA graphs"),
)
"""vLLM's progress bars, by what stands in front of them."""
_LOST_WORKER = re.compile(r"Worker proc (\S+) died unexpectedly \(exit code: (-?\d+)\)")
_CANT_LISTEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
_FAILED = re.compile(r"(WorkerProc|EngineCore) (failed|encountered a fatal error)")

installed = False
"""Whether this process tells already: for the plugin, in a fork that inherited the hooks."""


class Teller:
    """Writes to `fd`. `host` is the process that listens; its own children it sees itself."""

    def __init__(self, fd: int, host: int) -> None:
        self.fd = fd
        self._host = host

    def install(self) -> None:
        """Begin, here and in every process forked from here."""
        global installed  # noqa: PLW0603
        installed = True
        logging.setLogRecordFactory(_Factory(logging.getLogRecordFactory(), self.look))
        _watch_exits(self.lost_child)
        _watch_threads(self.lost_thread)
        _watch_bars(self.bar)

    def look(self, record: logging.LogRecord) -> None:
        """Pass on what matters; runs in whichever process logs, in the middle of its work."""
        try:
            message = record.getMessage()
        except (KeyError, TypeError, ValueError):
            # Somebody's format string doesn't fit its arguments; logging itself reports that.
            return
        if record.levelno < logging.ERROR:
            for mark, text in PHASES:
                if mark.search(message):
                    self.tell("phase", text)
                    return
        elif lost := _LOST_WORKER.search(message):
            self.tell("lost", f"{lost[1]} {lost[2]}")
        elif _FAILED.search(message) and record.exc_info and record.exc_info[1] is not None:
            self.tell("cause", _first_line(record.exc_info[1]))

    def lost_child(self, name: str, exitcode: int) -> None:
        """Pass on that a child of a child of the host ended badly."""
        if os.getpid() != self._host:
            self.tell("lost", f"{name} {exitcode}")

    def lost_thread(self, name: str, error: BaseException) -> None:
        """End this process of the engine if one of its threads couldn't listen.

        vLLM waits without a limit for NIXL's listener to be up, also when the port is taken and
        the listener has died of that. Its death ends the start; that of its process ends the wait.
        """
        if os.getpid() == self._host or getattr(error, "errno", None) not in _CANT_LISTEN:
            return
        self.tell("cause", f"{_first_line(error)} in thread {name}")
        sys.stderr.flush()
        os._exit(1)

    def bar(self, title: str, done: float, total: float | None) -> None:
        """Pass on how far a progress bar is, if we know what it means."""
        for mark, text in BARS:
            if total and mark.search(title):
                self.tell("percent", f"{100.0 * done / total:.0f} {text}")

    def tell(self, kind: str, text: str) -> None:
        """Write one line, unless nobody has read for long."""
        if self.fd < 0:
            return
        process = multiprocessing.current_process().name
        line = f"{kind}\t{process}\t{' '.join(text.split())}".encode()[:LINE_MAX] + b"\n"
        with contextlib.suppress(OSError):
            os.write(self.fd, line)


def _first_line(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"


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


def _watch_threads(tell: Callable[[str, BaseException], None]) -> None:
    """Let each thread tell that dies of an exception, after it was printed as usual."""
    inner = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        inner(args)
        if args.exc_value is not None:
            tell(args.thread.name if args.thread is not None else "", args.exc_value)

    threading.excepthook = hook


def _watch_bars(tell: Callable[[str, float, float | None], None]) -> None:
    """Let each progress bar tell when it is drawn, which it is at most ten times a second."""
    try:
        bar: Any = importlib.import_module("tqdm.std").tqdm
    except ImportError:
        return
    inner = bar.display

    def display(self: Any, *args: Any, **kwargs: Any) -> Any:
        tell(str(self.desc or ""), float(self.n or 0), self.total)
        return inner(self, *args, **kwargs)

    bar.display = display


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
