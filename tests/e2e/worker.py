"""A real forked worker and a fake daemon: what a runtime test looks at from both sides."""

import gc
import os
import signal
import sys
import traceback

import zmq

from orchestrator.wire import config as wire_config
from orchestrator.wire import messages, plane
from tests.eventually import eventually

LIFE = "agg/worker-0.0#1"


class Daemon:
    """A ROUTER that remembers everything; pumped by whoever waits."""

    def __init__(self, folder):
        self.endpoint = f"ipc://{folder}/control"
        self.heard = []
        self.context = zmq.Context()
        self.socket = None
        self.bind()

    def bind(self):
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(self.endpoint)

    def die(self):
        self.socket.close()

    def pump(self):
        while self.socket.poll(0):
            life, payload = self.socket.recv_multipart()
            message = messages.decode_at_daemon(payload)
            assert life.decode() == message.life
            self.heard.append(message)

    def tell(self, message):
        self.socket.send_multipart([LIFE.encode(), messages.encode(message)])

    def wait_for(self, kind, where=lambda _message: True, within_s=15.0):
        """The first message of a kind that wasn't asked for before, also an old one."""

        def found():
            self.pump()
            return next((m for m in self.heard if isinstance(m, kind) and where(m)), None)

        return eventually(found, within_s)

    def said(self, kind):
        """All messages of a kind so far."""
        self.pump()
        return [message for message in self.heard if isinstance(message, kind)]

    def forget(self):
        self.pump()
        self.heard.clear()


class Frontend:
    """A synchronous DEALER on a worker's request plane."""

    def __init__(self, context, endpoint):
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.items = {}

    def open(self, request_id, body, path="/v1/completions", method="POST"):
        headers = [(b"content-type", b"application/json")]
        request = plane.Open(request_id, method, path, b"", headers, body)
        self.socket.send(plane.encode([request]))

    def cancel(self, request_id):
        self.socket.send(plane.encode([plane.Cancel(request_id)]))

    def close(self):
        self.socket.close()

    def of(self, request_id):
        while self.socket.poll(0):
            for item in plane.decode_up(self.socket.recv()):
                self.items.setdefault(item.id, []).append(item)
        return self.items.get(request_id, [])

    def end(self, request_id, within_s=15.0):
        def ended():
            items = self.of(request_id)
            assert items, "not one item came"
            assert isinstance(items[-1], plane.End | plane.Fail), f"{len(items)}, {items[-1]}"
            return items

        return eventually(ended, within_s)


class Worker:
    """One forked worker process; `entry(blob) -> status` runs in it."""

    def __init__(self, entry, folder, daemon, **fields):
        self.stderr = folder / "stderr"
        fields = {"served_names": ["m"], "beat_period_s": 0.05, "options": {}, **fields}
        self.config = wire_config.WorkerConfig(
            life=LIFE, kind="aggregated", control=daemon.endpoint, events="",
            plane=f"ipc://{folder}/plane", state_dir=str(folder), **fields,
        )  # fmt: skip
        self.status = None
        self.pid = os.fork()
        if not self.pid:
            self._run(entry)

    def _run(self, entry):
        status = 99
        try:
            os.setsid()
            descriptor = os.open(self.stderr, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            os.dup2(descriptor, 2)
            # What the tests before left behind must not be collected here: an old loop's finalizer
            # would close a number that is one of this worker's sockets by then.
            gc.freeze()
            # As a shim does it: a fork must not keep the daemon's sockets open.
            os.closerange(3, 1024)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            status = entry(wire_config.encode(self.config))
        except BaseException:  # noqa: BLE001 whatever it is, pytest must not go on in the child
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def term(self):
        os.kill(self.pid, signal.SIGTERM)

    def exited(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self, within_s=15.0):
        eventually(self.exited, within_s)
        return self.status

    def said(self):
        return self.stderr.read_text()

    def kill(self):
        if not self.exited():
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
