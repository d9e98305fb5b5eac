"""What the frontend costs, beside a plain uvicorn app that answers the same bytes, in one run.

    python benchmarks/frontend.py [--streams 64] [--seconds 5] [--json]

One small application stands in for an engine. It is served twice: by uvicorn itself (the plain
server: httptools, uvloop, no framework), and behind the frontend, over the request plane, from a
process of its own. Counted is the CPU time of the uvicorn process and of the frontend process
alone (/proc/PID/task/*/schedstat, all threads), so the ratio is what the frontend adds over a
server that had the bytes at hand. Absolute figures belong to this machine; the ratio travels.

`request`: short answers, as many as 64 keep-alive connections can ask for. `chunk`: 64 streams at
100 chunks a second each, all in step, as an engine produces them. The two take turns, three times,
and the median counts.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import uvicorn  # noqa: E402
import uvloop  # noqa: E402
import zmq  # noqa: E402

from tests.e2e.frontend_stage import Stage, free_port, wait_listening  # noqa: E402
from workers.runtime.bridge import Bridge  # noqa: E402

ROUNDS = 3
STEP_S = 0.01
CHOICE = {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
EVENT = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1}
CHUNK = b"data: " + json.dumps(EVENT | {"model": "m", "choices": [CHOICE]}).encode() + b"\n\n"
ANSWER = json.dumps(EVENT | {"model": "m", "choices": [CHOICE]}).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Steps:
    """An engine's step: everybody who waits is woken together."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self._running = False

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._running:
            self._running = True
            loop.call_later(STEP_S, self._step, loop.time() + STEP_S)
        waiter = loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _step(self, due: float) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        loop = asyncio.get_running_loop()
        self._running = bool(waiters)
        if waiters:
            due = max(due + STEP_S, loop.time())
            loop.call_at(due, self._step, due)


STEPS = Steps()


async def app(scope, receive, send):
    message = await receive()
    if scope["path"] == "/v1/models":
        await respond(send, MODELS)
        return
    request = json.loads(message["body"])
    if not request["stream"]:
        await respond(send, ANSWER)
        return
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for _ in range(request["max_tokens"]):
        await STEPS.wait()
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def respond(send, body):
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def serve_plane(endpoint):
    await Bridge(zmq.Context(), endpoint).start(app, {})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def serve_http(port):
    config = uvicorn.Config(
        app, port=port, http="httptools", loop="uvloop", lifespan="off", log_level="warning",
        access_log=False,
    )  # fmt: skip
    uvicorn.Server(config).run()


class Load(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has its answer."""

    def __init__(self, request: bytes, deadline: float) -> None:
        self.answers = 0
        self.chunks = 0
        self.done = asyncio.get_running_loop().create_future()
        self._request = request
        self._deadline = deadline
        self._tail = b""

    def connection_made(self, transport):
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data):
        self.chunks += data.count(b"data: {")
        self._tail = (self._tail + data)[-64:]
        if self._tail.endswith((b"]}", b"0\r\n\r\n")):
            self._tail = b""
            self.answers += 1
            if time.monotonic() < self._deadline:
                self._transport.write(self._request)
            else:
                self._transport.close()

    def connection_lost(self, _exc):
        if not self.done.done():
            self.done.set_result(None)


async def load(port: int, streams: int, seconds: float, *, stream: bool) -> tuple[int, int, int]:
    """Ask for `seconds`; answers, chunks, and whether all connections ended by our own close."""
    tokens = int(seconds / STEP_S)
    text = "Tell me about the sea, in a few sentences, and plainly."
    messages = [{"role": "user", "content": text}]
    body = {"model": "m", "stream": stream, "max_tokens": tokens, "messages": messages}
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\naccept: application/json\r\n"
        "user-agent: bench\r\nauthorization: Bearer none\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    deadline = time.monotonic() + (0 if stream else seconds)
    loop = asyncio.get_running_loop()
    made = [Load(head.encode() + data, deadline) for _ in range(streams)]
    for one in made:
        await loop.create_connection(lambda one=one: one, "127.0.0.1", port)
    await asyncio.gather(*(one.done for one in made))
    return sum(one.answers for one in made), sum(one.chunks for one in made), len(made)


def cpu_s(pid: int) -> float:
    """CPU time of all threads of one process, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def measure(pid: int, port: int, streams: int, seconds: float) -> dict[str, float]:
    before = cpu_s(pid)
    answers, _, _ = uvloop.run(load(port, streams, seconds, stream=False))
    middle = cpu_s(pid)
    _, chunks, _ = uvloop.run(load(port, streams, seconds, stream=True))
    after = cpu_s(pid)
    assert chunks == streams * int(seconds / STEP_S), f"{chunks} chunks came"
    return {
        "request_us": (middle - before) / answers * 1e6,
        "requests_per_s": answers / seconds,
        "chunk_us": (after - middle) / chunks * 1e6,
    }


def compare(streams: int, seconds: float) -> dict[str, dict[str, float]]:
    rounds: dict[str, list[dict[str, float]]] = {"uvicorn": [], "frontend": []}
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        stage.worker("w", argv=[sys.executable, __file__, "--plane"])
        stage.serve("w")
        plain_port = free_port()
        plain = subprocess.Popen([sys.executable, __file__, "--http", str(plain_port)])
        try:
            wait_listening(plain_port)
            for _ in range(ROUNDS):
                targets = (("uvicorn", plain.pid, plain_port),
                           ("frontend", stage.frontends[0].pid, stage.port))  # fmt: skip
                for name, pid, port in targets:
                    rounds[name].append(measure(pid, port, streams, seconds))
        finally:
            plain.kill()
            plain.wait()
    return {name: {key: statistics.median(one[key] for one in them) for key in them[0]}
            for name, them in rounds.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plane", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--http", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plane:
        uvloop.run(serve_plane(args.plane[0]))
        return
    if args.http:
        serve_http(args.http)
        return
    found = compare(args.streams, args.seconds)
    ratio = {key: found["frontend"][key] / found["uvicorn"][key]
             for key in ("request_us", "chunk_us")}  # fmt: skip
    if args.json:
        print(json.dumps(found | {"ratio": ratio}))
        return
    print(f"{'':10}{'CPU us/request':>16}{'requests/s':>12}{'CPU us/chunk':>14}")
    for name, row in found.items():
        print(f"{name:10}{row['request_us']:16.1f}{row['requests_per_s']:12.0f}"
              f"{row['chunk_us']:14.1f}")  # fmt: skip
    print(f"{'ratio':10}{ratio['request_us']:16.2f}{'':12}{ratio['chunk_us']:14.2f}")


if __name__ == "__main__":
    main()
