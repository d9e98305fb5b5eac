"""The zygote: a process that has imported what workers need, and forks shims from that image.

It has one thread, no device open and no socket but the one to its daemon, and it sleeps in a read
of that until a request comes or the daemon is gone. Start-up garbage is collected and what is left
frozen before the first fork, so that a child's garbage collector doesn't copy every page.

Three processes run the same few lines at the bottom. `serve` returns only in a freshly forked
shim, `Shim.fork` returns a descriptor only in a freshly forked worker, and the worker's exit is the
interpreter's own, with everything that its libraries registered for it.

A shim waits at a gate until the daemon was told of it: it writes its record and says so, the
zygote answers the daemon, and only then does the shim fork the worker. Should zygote or daemon die
in between, there is either a record of it or no worker.
"""

import gc
import os
import signal
import socket
import sys
import time

from orchestrator.host import child, framing, procfs, title
from orchestrator.host.shim import Shim
from orchestrator.host.spawn import Spawn

GATE_S = 20.0
"""What a shim gets to set itself up; a run directory on a dead network disk takes for ever."""

READY, GO = b"ready", b"go"


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
    title.set_title(f"dynorch: zygote {profile}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    began = time.monotonic()
    if preload:
        _preload(preload, daemon)
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        text = f"{preload} left {len(threads) - 1} threads running: they would be missing in a fork"
        daemon.sendall(framing.pack({"failed": text}))
        return None
    # Nobody waits for a shim here: the kernel reaps those that end while we live.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # What is still buffered would be printed by every child.
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()
    version = ".".join(map(str, sys.version_info[:3]))
    took = time.monotonic() - began
    daemon.sendall(framing.pack({"hello": os.getpid(), "python": version, "preload_s": took}))
    while True:
        request = framing.receive(daemon)
        if request is None:
            return None
        spawn = Spawn.from_json(str(request["spawn"]))
        shim, answer, gate = _bear(spawn, daemon)
        if shim is not None:
            return spawn, shim
        try:
            daemon.sendall(framing.pack({"serial": request["serial"], **answer}))
        except OSError:
            return None  # the gate closes unopened, and the shim leaves
        if gate is not None:
            gate.sendall(GO)
            gate.close()


def _preload(name: str, daemon: socket.socket) -> None:
    module, _, function = name.partition(":")
    try:
        __import__(module)
        getattr(sys.modules[module], function)()
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        text = f"{name}: {type(error).__name__}: {error}"
        daemon.sendall(framing.pack({"failed": text[:2000]}))
        raise


def _bear(
    spawn: Spawn, daemon: socket.socket
) -> tuple[Shim | None, dict[str, object], socket.socket | None]:
    """Fork one shim. In it, returns its work; in the zygote, the answer and the open gate."""
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
    except OSError as error:
        return None, {"error": f"cannot fork: {error.strerror}"}, None
    if pid == 0:
        ours.close()
        daemon.close()
        return _at_the_gate(spawn, theirs), {}, None
    theirs.close()
    identity: dict[str, object] = {"pid": pid, "starttime": procfs.starttime(pid)}
    ours.settimeout(GATE_S)
    try:
        word = ours.recv(2000)
    except OSError as error:
        word = f"the shim wasn't ready within {GATE_S:g} s ({error})".encode()
    if word != READY:
        ours.close()
        text = word.decode("utf-8", "replace") or "the shim died before it was ready"
        return None, {"error": text}, None
    return None, identity, ours


def _at_the_gate(spawn: Spawn, gate: socket.socket) -> Shim:
    """Set the shim up, say so, and wait for the word. Leaves the process if it doesn't come."""
    keep = gate.fileno()
    _close_everything_but(keep, os.path.join(spawn.directory, "shim.err"), gate)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    shim = Shim(spawn)
    try:
        shim.prepare()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        gate.sendall(f"{error.strerror}{where}".encode()[:2000])
        os._exit(1)
    try:
        gate.sendall(READY)
        word = gate.recv(len(GO))
    except OSError:
        word = b""
    if word != GO:
        os._exit(1)
    gate.close()
    return shim


def _close_everything_but(keep: int, errors: str, gate: socket.socket) -> None:
    """Let go of all that the zygote has open; our own last words go to the file `errors`."""
    try:
        fd = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        gate.sendall(f"{error.strerror} {errors}".encode()[:2000])
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    for one in procfs.open_fds():
        if one > 2 and one != keep:
            try:
                os.close(one)
            except OSError:
                continue
