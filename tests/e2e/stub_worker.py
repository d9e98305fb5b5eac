"""A worker for the frontend's tests: the real bridge, and an app that does what the request asks.

Run as `python -m tests.e2e.stub_worker ENDPOINT NAME MODEL...`. Commands travel in the body's
`stub` object, so a test needs only an HTTP client: `tokens`, `bytes` (size of one token), `die`,
`raise`, `hang` (before the first token), `hang_after` it, `gate` ("before" or "after" it: wait for
/stub/open-gate), `half` (of a plain body, then nothing), `engine_dead` (the name of the worker
that says so), `status`, `error_event` (as a stream's first), `params` (what prefill gives as
transfer parameters). What is under `only.NAME` goes for one worker.

Everything that arrives is appended to ENDPOINT.log as a line of JSON, bodies as latin-1.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import uvloop
import zmq

from workers.runtime.bridge import Bridge

SEEN: dict[str, int] = {"requests": 0, "cancelled": 0, "open": 0}
GATE = asyncio.Event()


async def app(scope, receive, send):
    message = await receive()
    path, body = scope["path"], message["body"]
    record(scope, body)
    if path == "/v1/models":
        cards = [{"id": name, "object": "model", "owned_by": "stub"} for name in MODELS]
        await answer(send, 200, {"object": "list", "data": cards})
    elif path == "/stub/seen":
        await answer(send, 200, SEEN)
    elif path == "/stub/drain":
        BRIDGE.refusing = "the worker is draining"
        await answer(send, 200, {})
    elif path == "/stub/open-gate":
        GATE.set()
        await answer(send, 200, {})
    elif path == "/echo":
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        text = body.decode("utf-8", "replace")
        await answer(send, 200, {"headers": headers, "body": text, "worker": NAME})
    elif path in {"/v1/chat/completions", "/v1/completions"}:
        await generate(json.loads(body), receive, send)
    else:
        await answer(send, 404, {"error": {"message": "Not Found", "type": "NotFoundError"}})


def record(scope, body):
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    entry = {"path": scope["path"], "headers": headers, "body": body.decode("latin-1")}
    with LOG.open("a") as log:
        log.write(json.dumps(entry) + "\n")


async def generate(request, receive, send):
    SEEN["requests"] += 1
    SEEN["open"] += 1
    left = asyncio.create_task(receive())
    stub = request.get("stub", {})
    stub |= stub.get("only", {}).get(NAME, {})
    work = asyncio.create_task(perform(request, stub, send))
    try:
        await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            work.cancel()
        await work
    except (OSError, asyncio.CancelledError):
        SEEN["cancelled"] += 1
    finally:
        left.cancel()
        SEEN["open"] -= 1


async def perform(request, stub, send):
    if stub.get("raise"):
        raise RuntimeError("the stub was told to raise")
    if stub.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    if stub.get("engine_dead") == NAME:
        text = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        await answer(send, 500, {"error": {"message": text, "type": "x", "code": 500}})
        return
    if stub.get("hang"):
        await asyncio.Event().wait()
    if stub.get("gate") == "before":
        await GATE.wait()
    if stub.get("half"):
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"half', "more_body": True})
        await asyncio.Event().wait()
    remote = request.get("kv_transfer_params") or {}
    if remote.get("do_remote_decode"):
        params = stub.get("params", PARAMS | {"remote_request_id": f"r{SEEN['requests']}"})
        data = chunk(request, [], "chat.completion") | {"kv_transfer_params": params}
        await answer(send, stub.get("status", 200), data)
        return
    if request.get("stream"):
        await stream(request, stub, send)
    else:
        after = f" after {remote['remote_engine_id']}" if remote else ""
        message = {"role": "assistant", "content": NAME + after}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        await answer(send, stub.get("status", 200), chunk(request, [choice], "chat.completion"))


async def stream(request, stub, send):
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if stub.get("error_event"):
        event = b'data: {"error": {"message":"Internal server error","code":500}}\n\n'
        await send({"type": "http.response.body", "body": event, "more_body": True})
        stub["tokens"] = 0
    for number in range(stub.get("tokens", 3)):
        text = f"{number} " + "x" * stub.get("bytes", 0)
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
        data = json.dumps(chunk(request, [choice], "chat.completion.chunk")).encode()
        event = b"data: " + data + b"\n\n"
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
        if number == 0 and stub.get("gate") == "after":
            await GATE.wait()
        if number == 0 and stub.get("hang_after"):
            await asyncio.Event().wait()
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def chunk(request, choices, kind):
    base = {"id": "stub", "object": kind, "created": 1, "model": request["model"]}
    return base | {"choices": choices}


async def answer(send, status, data):
    body = json.dumps(data).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def serve():
    await BRIDGE.start(app, {})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, where, NAME, *MODELS = sys.argv
    LOG = Path(where.removeprefix("ipc://") + ".log")
    PARAMS = {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]],
        "remote_engine_id": NAME, "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1,
    }  # fmt: skip
    BRIDGE = Bridge(zmq.Context(), where)
    uvloop.run(serve())
