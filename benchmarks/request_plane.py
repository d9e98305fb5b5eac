"""What a streamed chunk costs the worker: bridge and simulated engine, CPU microseconds a chunk.

A worker process serves STREAMS streams over its request plane; this process is the frontend and
only counts. CPU is the worker's own, all threads, from the kernel's accounting. `paced` makes a
step every 10 ms, as an engine does; `flat out` makes them as fast as the loop turns. `bridge` is
the same with an application that sends ready-made bytes: the request plane alone.

    python benchmarks/request_plane.py [--streams 64] [--tokens 1000]
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop
import zmq

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.wire import config as wire_config
from orchestrator.wire import plane
from workers.runtime.serve import serve
from workers.sim.engine import SimEngine

CHUNK = b"data: " + b"x" * 180 + b"\n\n"
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


class BareEngine(SimEngine):
    """Sends the same bytes for every step: what is left is the request plane."""

    async def start(self, report):
        await super().start(report)
        self._turn = asyncio.Event()
        return self._app

    async def _app(self, scope, receive, send):
        if scope["type"] != "http":
            return
        ask = json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(ask["max_tokens"] if ask.get("stream") else 0):
            await self._step()
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b"{}"})

    async def _step(self):
        """One timer for all streams, as an engine has."""
        turn = self._turn
        if not turn.is_set() and not getattr(turn, "armed", False):
            turn.armed = True
            asyncio.get_running_loop().call_later(self._config.options["step"], self._next)
        await turn.wait()

    def _next(self):
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()


def cpu_s(pid):
    """CPU seconds of a process, all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(engine, loop, step, streams, tokens):
    """CPU us per chunk in the worker, messages, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        config = wire_config.WorkerConfig(
            life="bench/worker-0.0#1", kind="aggregated", control=f"ipc://{folder}/c", events="",
            plane=f"ipc://{folder}/p", state_dir=folder, model="m", options={"step": step},
        )  # fmt: skip
        pid = os.fork()
        if not pid:
            os._exit(serve(config, engine(config), LOOPS[loop]))
        context = zmq.Context()
        try:
            return drive(context, config.plane, pid, streams, tokens)
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            context.destroy(linger=0)


def drive(context, endpoint, pid, streams, tokens):
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    run(socket, 0, 1, 1)
    before, began = cpu_s(pid), time.monotonic()
    chunks, messages = run(socket, 1, streams, tokens)
    took_s = time.monotonic() - began
    return (cpu_s(pid) - before) / chunks * 1e6, messages, took_s


def run(socket, first, streams, tokens):
    body = json.dumps({"prompt": "a", "max_tokens": tokens, "stream": True}).encode()
    opens = [
        plane.Open(first + n, "POST", "/v1/completions", b"", [], body) for n in range(streams)
    ]
    socket.send(plane.encode(opens))
    chunks = messages = ended = 0
    while ended < streams:
        items = plane.decode_up(socket.recv())
        messages += 1
        chunks += sum(isinstance(item, plane.Chunk) for item in items)
        ended += sum(isinstance(item, plane.End) for item in items)
        assert not any(isinstance(item, plane.Fail) for item in items)
    return chunks, messages


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000)
    given = parser.parse_args()
    print(f"{given.streams} streams of {given.tokens} chunks; CPU of the worker alone")
    print(f"{'engine':8} {'loop':8} {'mode':9} {'us/chunk':>9} {'messages':>9} {'seconds':>8}")
    for name, engine in (("sim", SimEngine), ("bridge", BareEngine)):
        for loop in LOOPS:
            for mode, step in (("paced", 0.01), ("flat out", 0.0)):
                figures = measure(engine, loop, step, given.streams, given.tokens)
                us, messages, took_s = figures
                print(f"{name:8} {loop:8} {mode:9} {us:9.1f} {messages:9} {took_s:8.2f}")


if __name__ == "__main__":
    main()
