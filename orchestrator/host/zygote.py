"""The zygote: a process that has imported what workers need, and forks shims from that image.

It has one thread, no device open and no socket but the one to its daemon, and it sleeps until that
has something to read. Then it forks: the child reads the request, answers it, and is the shim. So
the zygote itself hardly ever writes into its memory, and what all its children share stays shared.
Start-up garbage is collected and the rest frozen before the first fork, so that no child's garbage
collector copies every page.

Three processes run the same few lines at the top. `serve` returns only in a freshly forked shim,
`Shim.fork` returns a descriptor only in a freshly forked worker, and the worker's exit is the
interpreter's own, with everything that its libraries registered for it.

A shim leaves its record, then answers the daemon, and forks the worker only if the daemon could be
told. So whenever zygote or daemon may die, there is either a record of a life, or no worker.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import time

from orchestrator.host import child, enclosure, framing, kernel, prctl, procfs, title
from orchestrator.host.fault_points import reached
from orchestrator.host.shim import Shim
from orchestrator.host.spawn import Spawn

REHEARSALS = 10
"""The interpreter has made up its mind about a function after eight calls."""

DEAF_TO = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def main() -> None:
    """Run `-c CODE DESCRIPTOR PROFILE PRELOAD PADDING`: a zygote, later perhaps shim or worker."""
    descriptor, profile, preload = sys.argv[1:4]
    born = serve(socket.socket(fileno=int(descriptor)), profile, preload)
    if born is None:
        return
    spawn, shim = born
    trouble = shim.fork()
    if trouble is not None:
        del born, shim
        sys.exit(child.run(spawn, trouble))
    shim.watch()
    os._exit(0)


def serve(daemon: socket.socket, profile: str, preload: str) -> tuple[Spawn, Shim] | None:
    """Fork a shim per request. Returns None when the daemon is gone, and in each shim its work."""
    title.locate()
    began = time.monotonic()
    if preload:
        _preload(preload, daemon)
    # After the imports: `setproctitle`, by which vLLM names its processes, must once have found
    # the command line as the kernel made it.
    title.set_title(f"dynorch: zygote {profile}")
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        text = f"{preload} left {len(threads) - 1} threads running: they would be missing in a fork"
        daemon.sendall(framing.pack({"failed": text}))
        return None
    # Nobody waits for a shim here: the kernel reaps those that end while we live.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # For zygote and shims; a worker gets them back, with one that came too early still waiting.
    signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    # What is still buffered would be printed by every child.
    sys.stdout.flush()
    sys.stderr.flush()
    _rehearse()
    gc.collect()
    gc.freeze()
    version = ".".join(map(str, sys.version_info[:3]))
    took = time.monotonic() - began
    daemon.sendall(framing.pack({"hello": os.getpid(), "python": version, "preload_s": took}))
    while True:
        if not daemon.recv(1, socket.MSG_PEEK):
            return None
        done, done_end = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(daemon, f"cannot fork: {error.strerror}")
            continue
        if pid == 0:
            os.close(done)
            return _begin(daemon, done_end)
        os.close(done_end)
        # One at a time: until it says so, the child reads from and writes to our socket.
        word = os.read(done, 1)
        os.close(done)
        if not word:
            return None  # it died over the request, and nobody knows how much of it is left


def _refuse(daemon: socket.socket, why: str) -> None:
    request = framing.receive(daemon)
    if request is not None:
        daemon.sendall(framing.pack({"serial": request["serial"], "error": why}))


def _begin(daemon: socket.socket, done: int) -> tuple[Spawn, Shim]:
    """Be the shim up to the point where its worker may be forked; leave if it mayn't."""
    reached("zygote.forked")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = framing.receive(daemon)
    if request is None:
        os._exit(1)
    spawn = Spawn.from_fields(request["spawn"])
    shim = Shim(spawn)
    try:
        shim.prepare((daemon.fileno(), done))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        answer: dict[str, object] = {"error": f"{error.strerror}{where}"}
    else:
        reached("shim.recorded")
        answer = {"pid": os.getpid()}
    try:
        daemon.sendall(framing.pack({"serial": request["serial"], **answer}))
    except OSError:
        shim.withdraw()
        os._exit(1)
    os.write(done, b"d")
    if "error" in answer:
        os._exit(1)
    os.close(done)
    daemon.close()
    reached("shim.answered")
    return spawn, shim


def _rehearse() -> None:
    """Do once what every shim will do.

    The interpreter writes into code and caches when something runs for the first time. What has
    run before the fork is shared by all shims; what hasn't costs each of them its own pages.
    """
    spawn = Spawn(life="-", nonce="-", directory="/", log_path="/-", env={}, argv=["-"])
    for _ in range(REHEARSALS):
        Shim(Spawn.from_fields(spawn.to_fields()))
        enclosure.rehearse()
        reached("rehearsal")
        kernel.Notes().begin()
        json.loads(json.dumps(spawn.to_fields(), default=repr))
        prctl.set_name("dynorch-zygote")
        procfs.starttime(os.getpid())
        procfs.boot_id()
        title.set_tag(title.PLACEHOLDER)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.poll(0)


def _preload(name: str, daemon: socket.socket) -> None:
    module, _, function = name.partition(":")
    try:
        __import__(module)
        getattr(sys.modules[module], function)()
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        text = f"{name}: {type(error).__name__}: {error}"
        daemon.sendall(framing.pack({"failed": text[:2000]}))
        raise
