"""A stage for the frontend: a stand-in for the daemon, stub workers, and frontends, all real
processes but the daemon, which is a thread here and says only what a routing table says.
"""

import contextlib
import http.client
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import openai
import zmq

from orchestrator.wire import config, messages, routes
from orchestrator.wire.routes import Blocked, Route, Routes
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
ENTRY = (
    "import sys; from workers.frontend.main import main;"
    "sys.exit(main(open(sys.argv[1], 'rb').read()))"
)
STUB = [sys.executable, "-m", "tests.e2e.stub_worker"]


class Daemon:
    """Control ROUTER and events PUB in a thread; keeps what it heard."""

    def __init__(self, folder: Path) -> None:
        self.control = f"ipc://{folder}/c"
        self.events = f"ipc://{folder}/e"
        self.heard: list[object] = []
        self.beats: dict[str, messages.Beat] = {}
        self.table: Routes | None = Routes(1, "t", "sim", [], [])
        self._orders: queue.Queue[tuple[str, object] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._bound = threading.Event()

    def start(self) -> "Daemon":
        self._thread.start()
        assert self._bound.wait(10)
        return self

    def stop(self) -> None:
        self._orders.put(None)
        self._thread.join(10)

    def publish(self, live: list[Route], blocked: list[Blocked] = ()) -> int:
        self.table = Routes(self.table.version + 1, "t", "sim", list(live), list(blocked))
        self._orders.put(("", None))
        return self.table.version

    def say(self, life: str, message: object) -> None:
        self._orders.put((life, message))

    def said(self, kind: type) -> list[object]:
        return [message for message in list(self.heard) if isinstance(message, kind)]

    def _run(self) -> None:
        context = zmq.Context()
        control, events = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
        control.linger = events.linger = 0
        control.bind(self.control)
        events.bind(self.events)
        self._bound.set()
        try:
            while self._turn(control, events):
                pass
        finally:
            context.destroy(linger=0)

    def _turn(self, control: zmq.Socket, events: zmq.Socket) -> bool:
        if control.poll(10):
            life, payload = control.recv_multipart()
            message = messages.decode_at_daemon(payload)
            if isinstance(message, messages.Beat):
                self.beats[message.life] = message
                control.send_multipart([life, messages.encode(messages.Ack(message.seq))])
            else:
                self.heard.append(message)
            if isinstance(message, messages.Hello):
                self._publish(events)
        with contextlib.suppress(queue.Empty):
            order = self._orders.get_nowait()
            if order is None:
                return False
            if order[1] is None:
                self._publish(events)
            else:
                control.send_multipart([order[0].encode(), messages.encode(order[1])])
        return True

    def _publish(self, events: zmq.Socket) -> None:
        if self.table is None:
            return
        topic = routes.TOPIC + self.table.topology.encode()
        events.send_multipart([topic, routes.encode(self.table)])


class Stage:
    """Everything one test needs; `with Stage(tmp_path) as stage`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon = Daemon(folder).start()
        self.port = free_port()
        self.workers: dict[str, subprocess.Popen[str]] = {}
        self.routes: dict[str, Route] = {}
        self.frontends: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        for process in [*self.workers.values(), *self.frontends]:
            process.kill()
            process.wait(10)
            if process.stdout:
                process.stdout.close()
        self.daemon.stop()

    def worker(
        self, name: str, *models: str, argv: list[str] = STUB, kind: str = "aggregated"
    ) -> Route:
        """Start a stub worker; it is in no table yet."""
        models = models or ("m",)
        endpoint = f"ipc://{self.folder}/w{len(self.workers)}"
        argv = [*argv, endpoint, name, *models]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        self.workers[name] = process
        role = "worker" if kind == "aggregated" else kind
        life = f"t/{role}-{len(self.routes)}.0#1"
        self.routes[name] = Route(life, role, kind, endpoint, list(models))
        return self.routes[name]

    def pair(self, prefills: str = "p", decodes: str = "d", **options: object) -> None:
        """Start prefill and decode workers, one for each word, and a frontend that has them all."""
        for kind, names in (("prefill", prefills), ("decode", decodes)):
            for name in names.split():
                self.worker(name, kind=kind)
        self.serve(*prefills.split(), *decodes.split(), **options)

    def received(self, name: str, path: str = "") -> list[dict]:
        """What a stub was sent, in order, the frontends' own questions left out."""
        log = Path(self.routes[name].endpoint.removeprefix("ipc://") + ".log")
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        return [one for one in entries if one["path"] != "/v1/models" and path in one["path"]]

    def kill(self, name: str) -> None:
        self.workers[name].send_signal(signal.SIGKILL)
        self.workers[name].wait(10)

    def publish(self, *names: str, blocked: list[Blocked] = ()) -> int:
        return self.daemon.publish([self.routes[name] for name in names], blocked)

    def frontend(self, *, wait: bool = True, replica: int = 0, **options: object) -> str:
        """Start a frontend; returns its life."""
        life = f"t/frontend-{replica}.0#1"
        settings = {"port": self.port} | {k.replace("_", "-"): v for k, v in options.items()}
        blob = config.encode(
            config.WorkerConfig(
                life=life,
                kind="frontend",
                control=self.daemon.control,
                events=self.daemon.events,
                state_dir=str(self.folder),
                beat_period_s=0.1,
                options=settings,
            )
        )
        path = self.folder / f"blob{len(self.frontends)}"
        path.write_bytes(blob)
        log = (self.folder / f"frontend{len(self.frontends)}.log").open("wb")
        argv = [sys.executable, "-c", ENTRY, str(path)]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log)
        log.close()
        self.frontends.append(process)
        if wait:
            eventually(lambda: self._ready(life), 20)
        return life

    def settled(self, version: int, life: str = "t/frontend-0.0#1") -> None:
        """Wait until a frontend answers with that table."""

        def is_settled() -> bool:
            beat = self.daemon.beats.get(life)
            return beat is not None and beat.routes_version >= version

        eventually(is_settled, 10)

    def serve(self, *names: str, **options: object) -> None:
        """Start stub workers of model `m` and a frontend that answers with all of them."""
        for name in names:
            if name not in self.routes:
                self.worker(name)
        version = self.publish(*names)
        self.frontend(**options)
        self.settled(version)

    def log(self, index: int = 0) -> str:
        return (self.folder / f"frontend{index}.log").read_text()

    def client(self, **options: object) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20, **options)

    def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            head = {"content-type": "application/json"} if data else {}
            connection.request(method, path, data, head | (headers or {}))
            response = connection.getresponse()
            lines = {name.lower(): value for name, value in response.getheaders()}
            return response.status, lines, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, dict]:
        status, _, body = self.call("GET", path)
        return status, json.loads(body)

    def chat(self, model: str = "m", **stub: object) -> tuple[int, dict]:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stub": stub}
        status, _, answer = self.call("POST", "/v1/chat/completions", body)
        return status, json.loads(answer)

    def stream(self, model: str = "m", **stub: object) -> socket.socket:
        """Send a streaming chat on a bare socket; the caller reads, or doesn't, and closes."""
        body = {"model": model, "messages": [], "stream": True, "stub": stub}
        data = json.dumps(body).encode()
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        sock.sendall(head.encode() + data)
        return sock

    def metric(self, line: str) -> float:
        _, _, text = self.call("GET", "/metrics")
        found = [one for one in text.decode().splitlines() if one.startswith(line + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def _ready(self, life: str) -> bool:
        for process in self.frontends:
            assert process.poll() is None, self.log(self.frontends.index(process))
        return any(
            isinstance(message, messages.Ready) and message.life == life
            for message in list(self.daemon.heard)
        )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_listening(port: int) -> None:
    """Wait until somebody accepts there."""

    def accepts() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        return False

    eventually(accepts)


def read_until(sock: socket.socket, sign: bytes) -> bytes:
    """Everything up to the read that brought `sign`."""
    data = b""
    while sign not in data:
        piece = sock.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return bytes(data)
