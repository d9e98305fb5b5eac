"""Readiness: nothing counts but a real answer, through the very socket that frontends use.

An engine whose constructor returned, whose `/health` says 200 and whose model is listed may still
be unable to produce a token. So the worker is its own first client: a DEALER on its own request
plane sends one request and reads a token back. Only then does the daemon hear `Ready`. The same
request, sent while the worker is idle, shows that it still can (see `rounds`).
"""

import asyncio
import itertools

import msgspec
import zmq

from orchestrator.wire import plane
from orchestrator.wire.sockets import Context, Reader, make_socket
from workers.runtime.engine import Canary, EngineStartError

TRIES_MAX = 5
RETRY_S = 0.5
ANSWER_S = 180.0
"""For one try; a first request may compile for half a minute, or much longer on a slow machine."""
MARK = (b"x-dynorch-canary", b"1")
"""Header by which an engine can tell the canary from its clients."""
PEER = b"dynorch-canary-"
"""The bridge leaves requests of such a peer out of its figures; also how request ids begin."""
GOOD_ENDS = (None, "stop", "length")
"""An `abort` or `error` comes with status 200 and is no proof of anything."""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []


_numbers = itertools.count()
_decode_completion = msgspec.json.Decoder(_Completion).decode


async def prove(context: Context, endpoint: str, canary: Canary) -> None:
    """Return when the canary was answered; EngineStartError when it wasn't, `TRIES_MAX` times."""
    fault = ""
    for attempt in range(TRIES_MAX):
        if attempt:
            await asyncio.sleep(RETRY_S)
        fault = await once(context, endpoint, canary, ANSWER_S)
        if not fault:
            return
    raise EngineStartError(f"the first request, {canary.method} {canary.path}, {fault}")


async def once(context: Context, endpoint: str, canary: Canary, within_s: float) -> str:
    """Send one request; empty if it was answered well, else what was wrong with the answer."""
    socket = make_socket(context, zmq.DEALER, hwm=64)
    name = PEER + str(next(_numbers)).encode()
    # A name of its own each time: what the one before left behind dies with its connection.
    socket.routing_id = name
    items: asyncio.Queue[plane.Up] = asyncio.Queue()

    def on_message(frames: list[bytes]) -> None:
        for item in plane.decode_up(frames[-1]):
            items.put_nowait(item)

    reader = Reader(socket, on_message)
    headers = [(b"content-type", b"application/json"), (b"x-request-id", name), MARK]
    request = plane.Open(1, canary.method, canary.path, b"", headers, canary.body)
    try:
        socket.connect(endpoint)
        reader.start()
        socket.send(plane.encode([request]), zmq.NOBLOCK)
        reader.kick()
        async with asyncio.timeout(within_s):
            return await _judge(items)
    except TimeoutError:
        return f"had no answer after {within_s:g} s"
    finally:
        reader.stop()
        socket.close(linger=0)


async def _judge(items: asyncio.Queue[plane.Up]) -> str:
    """Read one answer; what is no completion (an embedding, or nothing) need only be a 200."""
    status, body = 0, b""
    while True:
        item = await items.get()
        if isinstance(item, plane.Head):
            status = item.status
        elif isinstance(item, plane.Chunk):
            body += item.data
        elif isinstance(item, plane.Fail):
            return f"failed: {item.text}"
        else:
            break
    text = body.decode(errors="replace")[:500]
    if status != 200:
        return f"was answered {status}: {text}"
    if not body:
        return ""
    try:
        choices = _decode_completion(body).choices
    except msgspec.DecodeError:
        return f"was answered with what isn't a completion: {text}"
    ends = [choice.finish_reason for choice in choices]
    bad = [end for end in ends if end not in GOOD_ENDS]
    return f"ended with {bad[0]!r}" if bad else ""
