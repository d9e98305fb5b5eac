"""The request plane: ASGI messages as batches of small items.

Each worker binds one ROUTER, each frontend connects one DEALER to each worker. A ZeroMQ message
is a single frame holding a msgpack array of items: everything a loop pass produced, for all its
streams, goes out as one message. That is where the speed is: one message carries one engine step
of all streams, where a frame per chunk costs an order of magnitude more.

A request is `Open`, then from the worker `Head`, any number of `Chunk`, and exactly one of `End`
or `Fail`. `Cancel` may be sent at any time; after it the worker still answers with `End` or
`Fail`, so that the sender knows that the request is gone. Ids are chosen by the frontend and are
unique among its own requests for as long as it lives.
"""

import msgspec

Headers = list[tuple[bytes, bytes]]

BATCH_ITEMS_MAX = 512
"""A loop pass that produced more items than this sends several messages."""


class Open(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A whole HTTP request: the body is complete (the frontend bounds it).

    `until`: the monotonic second after which it must not be begun any more, 0 for never. A worker
    that was frozen finds requests in its socket whose KV cache others have overwritten meanwhile.
    """

    id: int
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    until: float = 0.0


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The client is gone or its deadline has passed: stop working on this request."""

    id: int


class Head(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Status line and headers."""

    id: int
    status: int
    headers: Headers


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Body bytes, never parsed between the first and the last."""

    id: int
    data: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The response is complete."""

    id: int


class Fail(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The request ended without a complete response.

    `code` is one of: cancelled, draining (never started, safe to send elsewhere), late (never
    started, because `until` had passed), app-error.
    """

    id: int
    code: str
    text: str


Down = Open | Cancel
Up = Head | Chunk | End | Fail

encode = msgspec.msgpack.Encoder().encode
decode_down = msgspec.msgpack.Decoder(list[Down]).decode
decode_up = msgspec.msgpack.Decoder(list[Up]).decode
