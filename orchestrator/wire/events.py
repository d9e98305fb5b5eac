"""What happened: one fact or decision, as it is published and as it is kept.

The daemon numbers events in the order of its mailbox, publishes each on its PUB socket (msgpack)
and appends it to the journal (one line of JSON). PUB may drop for a slow reader, so a reader that
sees a gap in `seq` asks for a snapshot; the journal has them all.
"""

import msgspec

TOPIC = b"event/"
"""The PUB topic, first frame of two."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened.

    `wall` is Unix time in seconds, for people only. `subject` is a replica's or a life's id, or
    "daemon". `what` is a short kebab word: phase-changed, worker-exited, spawned, verb. `phase` is
    the replica's phase after it, empty when it has none. `reason` is a sentence or empty.
    """

    seq: int
    wall: float
    subject: str
    what: str
    phase: str = ""
    reason: str = ""
    detail: dict[str, str] = {}


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Event).decode
encode_line = msgspec.json.Encoder().encode
