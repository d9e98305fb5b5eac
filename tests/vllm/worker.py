"""A worker's world without daemon, shim and frontend: just enough of each to talk to it."""

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil
import zmq

from orchestrator.wire import config as wire
from orchestrator.wire import messages, plane
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
LIFE = "test/agg-0.0#1"
READY_S = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Zygote:
    """`tests.vllm.zygote` as a process."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.vllm.zygote"],
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.import_s = self._answer()["import_s"]
        return self

    def __exit__(self, *_exc) -> None:
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, blob: bytes, env: dict[str, str], log: Path) -> int:
        encoded = base64.b64encode(blob).decode()
        return self._ask({"blob": encoded, "env": env, "log": str(log)})

    def wait(self, pid: int) -> int:
        """The exit status of a worker, negative for a signal."""
        return os.waitstatus_to_exitcode(self._ask({"wait": pid}))

    def _ask(self, request: dict):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the zygote died; its stderr says why"
        return json.loads(line)


class Worker:
    """One worker with a daemon and a frontend of its own. On exit its whole tree is killed."""

    def __init__(self, zygote: Zygote, env, work: Path, model: Path, flags, life=LIFE) -> None:
        self.zygote, self.log = zygote, work / "log"
        # Socket paths are short, and the directories that pytest makes aren't.
        self._dir = tempfile.TemporaryDirectory(prefix="dv", dir="/tmp")
        run = Path(self._dir.name)
        self._context = zmq.Context()
        self._daemon = self._context.socket(zmq.ROUTER)
        self._daemon.bind(f"ipc://{run}/c")
        self.heard: list = []
        self.shared_memory: set[str] = set()
        self.life = life
        self._plane = f"ipc://{run}/p"
        self.config = wire.WorkerConfig(
            life=life, kind="aggregated", control=f"ipc://{run}/c", events="", plane=self._plane,
            state_dir=str(run), model=str(model), served_names=["tiny"], beat_period_s=0.1,
            options=flags,
        )  # fmt: skip
        (run / "t").mkdir()
        self._env = {**env, "TMPDIR": f"{run}/t", "VLLM_RPC_BASE_PATH": f"{run}/t"}
        self._ids = itertools.count(1)
        self._status: int | None = None

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self.pid = self.zygote.fork(wire.encode(self.config), self._env, self.log)
        self._frontend = self._context.socket(zmq.DEALER)
        self._frontend.connect(self._plane)
        return self

    def __exit__(self, *_exc) -> None:
        self.note_shared_memory()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        eventually(lambda: not self.session(), 10)
        for name in self.shared_memory:
            Path("/dev/shm", name).unlink(missing_ok=True)
        self._context.destroy(linger=0)
        self._dir.cleanup()

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        if self._status is None:
            self._status = self.zygote.wait(self.pid)
        return self._status

    def session(self) -> list[psutil.Process]:
        """Every living process of its session."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and os.getsid(process.pid) == self.pid:
                    found.append(process)
        return found

    def part(self, title: str) -> psutil.Process:
        """The process of its tree that calls itself by this title."""
        (process,) = [each for each in self.session() if each.name().startswith(title[:15])]
        return process

    def note_shared_memory(self) -> set[str]:
        """Add the names in /dev/shm that its tree maps now to `shared_memory`."""
        for process in self.session():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                paths = [line.partition("/dev/shm/")[2] for line in maps.splitlines()]
                self.shared_memory |= {path.split(" ")[0] for path in paths if path}
        return self.shared_memory

    # The daemon.

    def listen(self) -> None:
        """Take what has arrived on the control socket; acknowledge beats."""
        while self._daemon.poll(0):
            life, payload = self._daemon.recv_multipart()
            message = messages.decode_at_daemon(payload)
            self.heard.append(message)
            if isinstance(message, messages.Beat):
                self._daemon.send_multipart([life, messages.encode(messages.Ack(message.seq))])

    def said(self, kind):
        """The messages of this kind that it has sent."""
        self.listen()
        return [message for message in self.heard if isinstance(message, kind)]

    def wait_ready(self) -> float:
        """Seconds from the fork until `Ready`."""
        eventually(self._ready_or_dead, READY_S, every_s=0.01)
        self.ready_s = time.monotonic() - self.began
        return self.ready_s

    def _ready_or_dead(self) -> bool:
        assert_alive = self.said(messages.Bye)
        if assert_alive:
            raise RuntimeError(f"{assert_alive[0].text}\n{self.log.read_text()[-3000:]}")
        return bool(self.said(messages.Ready))

    # The frontend.

    def open(self, path: str, body: dict | None = None, method: str = "") -> int:
        """Send one request; its id."""
        request_id = next(self._ids)
        payload = b"" if body is None else json.dumps(body).encode()
        method = method or ("GET" if body is None else "POST")
        headers = [(b"content-type", b"application/json")]
        request = plane.Open(request_id, method, path, b"", headers, payload)
        self._frontend.send(plane.encode([request]))
        return request_id

    def receive(self, within_s: float = 60) -> list:
        """The next batch from the worker."""
        assert self._frontend.poll(within_s * 1000), f"nothing from the worker in {within_s} s"
        return plane.decode_up(self._frontend.recv())

    def cancel(self, request_id: int) -> None:
        """Tell the worker that the client is gone."""
        self._frontend.send(plane.encode([plane.Cancel(request_id)]))

    def ask(self, path: str, body: dict | None = None, method: str = "") -> tuple[int, bytes]:
        """One whole request: status and body."""
        request_id = self.open(path, body, method)
        status, answer = 0, b""
        while True:
            for item in self.receive():
                assert item.id == request_id, item
                if isinstance(item, plane.Head):
                    status = item.status
                elif isinstance(item, plane.Chunk):
                    answer += item.data
                else:
                    assert isinstance(item, plane.End), item
                    return status, answer
