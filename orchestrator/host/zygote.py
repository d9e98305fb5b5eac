"""The zygote: a process that has imported what workers need, and forks shims from that image.

It has one thread, no device open and no socket but the one to its daemon, and it nearly always
sleeps: until its *spare* has taken a request. That is a shim which is forked already, with its
worker's process (see `seed`), and waits for the daemon in the zygote's place. It reads the request,
answers it, and is that life's shim; then the zygote forks the next. So a start waits for no fork,
the zygote itself hardly ever writes into its memory, and what all its children share stays shared.
Start-up garbage is collected and the rest frozen before the first fork, so that no child's garbage
collector copies every page.

Three processes run the same few lines at the top. `serve` returns only in shims and in workers that
were spares, `Shim.fork` returns a descriptor only in a freshly forked worker, and the worker's exit
is the interpreter's own, with everything that its libraries registered for it.

A shim leaves its record, then answers the daemon, and lets the worker begin only if the daemon
could be told. So whenever zygote or daemon may die, there is either a record of a life, or no
worker.
"""

import contextlib
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
from orchestrator.host.seed import Seed, rehearse
from orchestrator.host.shim import Shim
from orchestrator.host.spawn import Spawn

Born = tuple[Spawn, Shim | int]
"""What is to be done, and by whom: a shim, or the worker, who reports trouble to a descriptor."""

REHEARSALS = 10
"""The interpreter has made up its mind about a function after eight calls."""

DEAF_TO = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def main() -> None:
    """Run `-c CODE DESCRIPTOR PROFILE PRELOAD HOME PADDING`: a zygote, perhaps shim or worker."""
    descriptor, profile, preload, home = sys.argv[1:5]
    born = serve(socket.socket(fileno=int(descriptor)), profile, preload, home)
    if born is None:
        return
    spawn, what = born
    if isinstance(what, Shim):
        trouble = what.fork()
        if trouble is None:
            what.watch()
            os._exit(0)
    else:
        trouble = what
    del born, what
    sys.exit(child.run(spawn, trouble))


def serve(daemon: socket.socket, profile: str, preload: str, home: str) -> Born | None:
    """Fork a shim per request. Returns None when the daemon is gone, and in each shim its work."""
    title.locate()
    began = time.monotonic()
    versions = _preload(preload, daemon) if preload else {}
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
    gc.disable()  # a shim makes no garbage; looking for it would touch pages
    version = ".".join(map(str, sys.version_info[:3]))
    took = time.monotonic() - began
    versions = {"python": version, **versions}
    daemon.sendall(framing.pack({"hello": os.getpid(), "versions": versions, "preload_s": took}))
    while True:
        done, done_end = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(done)
            os.close(done_end)
            if not _comes(daemon):
                return None
            _refuse(daemon, f"cannot fork: {error.strerror}")
            continue
        if pid == 0:
            os.close(done)
            return _begin(daemon, done_end, home)
        os.close(done_end)
        # One at a time: until it says so, the child reads from and writes to our socket.
        word = os.read(done, 1)
        os.close(done)
        if not word:
            # The daemon is gone. Or it died over a request: nobody knows how much of that is left.
            return None


def _comes(daemon: socket.socket) -> bool:
    """Wait for a request; False when the daemon is gone."""
    try:
        return bool(daemon.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _refuse(daemon: socket.socket, why: str) -> None:
    request = framing.receive(daemon)
    if request is not None:
        daemon.sendall(framing.pack({"serial": request["serial"], "error": why}))


def _begin(daemon: socket.socket, done: int, home: str) -> Born:
    """Be a spare shim, then a life's, up to the point where there may be a worker; else leave."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The end of its socket is a spare's end. Should somebody have stopped it, it must see that.
    prctl.die_with_parent(signal.SIGCONT)
    os.setsid()
    os.chdir("/")
    prctl.become_subreaper()
    title.set_tag("spare")  # or it would seem to belong to whatever tree is being looked for
    title.set_title("dynorch: spare shim")
    seed = _seed(home)
    if seed is not None and seed.pid == 0:
        daemon.detach()
        return seed.wait(), seed.report_end
    request = _await_request(daemon)
    if request is None:
        if seed is not None:
            seed.discard()
        os._exit(1)
    spawn = Spawn.from_fields(request["spawn"])
    if seed is not None and not seed.fits(spawn):
        seed.discard()
        seed = None
    shim = Shim(spawn, seed)
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
    if "error" in answer:
        shim.withdraw()
        _tell(done)
        os._exit(1)
    _tell(done)
    os.close(done)
    daemon.close()
    reached("shim.answered")
    return spawn, shim


def _tell(done: int) -> None:
    """Give the socket back to the zygote, if that still lives. If not, this life goes on."""
    with contextlib.suppress(BrokenPipeError):
        os.write(done, b"d")


def _seed(home: str) -> Seed | None:
    try:
        return Seed(home)
    except OSError:
        return None  # the request, if one comes, will find out what is lacking


def _await_request(daemon: socket.socket) -> dict[str, object] | None:
    """Wait for what there is to do; None when nothing will come any more."""
    if not _comes(daemon):
        return None
    reached("zygote.forked")
    return framing.receive(daemon)


def _rehearse() -> None:
    """Do once what every shim will do.

    The interpreter writes into code and caches when something runs for the first time. What has
    run before the fork is shared by all shims; what hasn't costs each of them its own pages.
    """
    spawn = Spawn(life="-", nonce="-", directory="/", log_path="/-", env={}, argv=["-"])
    for _ in range(REHEARSALS):
        Shim(Spawn.from_fields(spawn.to_fields()))
        enclosure.rehearse()
        rehearse(spawn)
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


def _preload(name: str, daemon: socket.socket) -> dict[str, str]:
    """Make the imports; returns the versions of what they found."""
    module, _, function = name.partition(":")
    try:
        __import__(module)
        return getattr(sys.modules[module], function)() or {}
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        said = type(error) is RuntimeError  # in words, and for people
        text = str(error) if said else f"{name}: {type(error).__name__}: {error}"
        daemon.sendall(framing.pack({"failed": text[:2000]}))
        raise
