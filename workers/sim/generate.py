"""One completion's way through the batch and back to the client, whole or streamed.

The client may leave at any time: a watcher waits for the disconnect while tokens are awaited, and
on the way out, whatever the way, the request's sequences are taken from the batch.
"""

import asyncio
import secrets

from msgspec import UNSET

from workers.runtime.engine import Receive, Send
from workers.sim import answers, shapes
from workers.sim.requests import Job
from workers.sim.sequence import Delta, Sequence
from workers.sim.sink import EngineDeadError, GenerationError, Sink
from workers.sim.stepper import Stepper

ENGINE_HEADER = (b"x-dynorch-engine", b"sim")
JSON_HEADERS = [(b"content-type", b"application/json"), ENGINE_HEADER]
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    ENGINE_HEADER,
]
DONE = b"data: [DONE]\n\n"


async def answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send a whole response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def generate(
    job: Job, dialect: answers.Dialect, stepper: Stepper, receive: Receive, send: Send
) -> None:
    """Generate all answers of a job; returns early if the client leaves."""
    sink = Sink()
    sequences = [
        Sequence(number * job.choices + choice, prompt, job.limits[number])
        for number, prompt in enumerate(job.prompts)
        for choice in range(job.choices)
    ]
    if job.wish is not None and stepper.connector is not None:
        for sequence in sequences:
            sequence.wish = job.wish
            sequence.name = f"{dialect.head.id}-{sequence.index}-{secrets.token_hex(4)}"
    watcher = asyncio.ensure_future(receive())
    watcher.add_done_callback(lambda _done: sink.close())
    stepper.submit(sequences, sink)
    try:
        if job.stream:
            await _stream(job, dialect, sequences, sink, send)
        else:
            said = await _whole(sequences, sink)
            if said is not None:
                # Where nothing could be lent nothing is said of it, elsewhere null if it wasn't.
                lent = sequences[0].lent if stepper.connector is not None else UNSET
                body = dialect.whole(said, _usage(job, sequences), lent)
                await answer(send, 200, body, JSON_HEADERS)
    finally:
        watcher.cancel()
        if any(sequence.finish is None for sequence in sequences):
            stepper.abort(sink)


async def _whole(sequences: list[Sequence], sink: Sink) -> list[list[Delta]] | None:
    """Collect all there is to say; None if the client left."""
    said: list[list[Delta]] = [[] for _ in sequences]
    unfinished = len(sequences)
    while unfinished:
        deltas = await sink.take()
        if not deltas:
            return None
        for delta in deltas:
            said[delta.index].append(delta)
            unfinished -= delta.finish is not None
    return said


async def _stream(
    job: Job, dialect: answers.Dialect, sequences: list[Sequence], sink: Sink, send: Send
) -> None:
    """Send an event per token; what one step produced for the request goes as one message."""
    unfinished = len(sequences)
    begun: set[int] = set()
    while unfinished:
        try:
            deltas = await sink.take()
        except (EngineDeadError, GenerationError) as error:
            if not begun:
                if isinstance(error, EngineDeadError):
                    raise
                await send(
                    {"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS}
                )
            # The status is out: as vLLM does, say it in the stream and end properly.
            said = b"data: " + shapes.problem(str(error), 500) + b"\n\n"
            await send({"type": "http.response.body", "body": said + DONE})
            return
        if not deltas:
            return
        if not begun:
            # Not before: until there is a token, a failure can still have a status of its own.
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        events = []
        for delta in deltas:
            if delta.index not in begun:
                begun.add(delta.index)
                events.append(dialect.opening(delta.index))
            usage = _usage(job, sequences) if job.usage_always else None
            events.append(dialect.piece(delta, usage))
            unfinished -= delta.finish is not None
        await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
    tail = dialect.usage(_usage(job, sequences)) if job.usage_at_end else b""
    await send({"type": "http.response.body", "body": tail + DONE})


def _usage(job: Job, sequences: list[Sequence]) -> shapes.Usage:
    """Count each prompt once, and each generated token."""
    prompt = sum(map(len, job.prompts))
    generated = sum(sequence.generated for sequence in sequences)
    usage = shapes.Usage(prompt, prompt + generated, generated)
    if job.wish is not None and job.wish.cached is not None:
        usage.prompt_tokens_details = shapes.PromptDetails(job.wish.cached)
    return usage
