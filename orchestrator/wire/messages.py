"""What daemon, workers and verbs say to each other on the control socket.

The daemon binds one ROUTER; workers and verbs are DEALERs. A message is one frame: a tagged
msgpack map. A worker's routing id is its life id, so a message is always attributed to an
incarnation, and a daemon that was just started can speak to a worker that it has never met.

The lease works both ways: the worker beats, the daemon answers each beat. A daemon that hears a
beat from a life it has no `Hello` of asks for one with `Greet`: that is how a new daemon learns
what the living workers are.
"""

from typing import Any

import msgspec

PROTOCOL = 1
PROTOCOLS = (PROTOCOL - 1, PROTOCOL)
"""What the daemon understands of its workers: its own version, and the one before."""


class Hello(msgspec.Struct, frozen=True, tag="hello", kw_only=True):
    """A worker's first words, and its answer to `Greet`."""

    life: str
    pid: int
    protocol: int
    version: str
    engine: str
    endpoint: str
    ready: bool
    models: list[str]


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """What a starting worker is doing: a fact for people, not a phase."""

    life: str
    text: str
    percent: float | None = None


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A real one-token request came back through this worker's own request plane."""

    life: str
    models: list[str]


class Beat(msgspec.Struct, frozen=True, tag="beat", kw_only=True):
    """The lease's renewal, sent by a thread that a blocked loop can't silence.

    `loop_age_s`: seconds since the worker's event loop last turned. `tokens` and `requests` only
    grow. `routes_version`: frontends only, the table they have applied.

    The rest says how the worker fares; all ages are seconds that it was awake for. `loop_at`: where
    a blocked loop is. `engine_age_s`: since when the engine's processes owe an answer; `suspect`:
    what the kernel says of them meanwhile, `stopped` if one of them is stopped. `stalled_s`: since
    when work has waited in the engine without one token. `canaries_missed`: test requests in a row
    that failed, the last of them with `canary_fault`. `period_s`: how often this life beats.
    """

    life: str
    seq: int
    ready: bool
    inflight: int
    requests: int
    tokens: int
    loop_age_s: float
    routes_version: int = 0
    loop_at: str = ""
    engine_age_s: float = 0.0
    suspect: str = ""
    stopped: bool = False
    stalled_s: float = 0.0
    canaries_missed: int = 0
    canary_fault: str = ""
    period_s: float = 0.0


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """The answer to `Drain`: nothing is in flight any more."""

    life: str


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """Last words: why this worker is about to exit. `code` is a value of `core.reasons.Cause`."""

    life: str
    code: str
    text: str


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """The daemon heard beat `seq`."""

    seq: int


class Greet(msgspec.Struct, frozen=True, tag="greet"):
    """Say hello again: this daemon doesn't know you yet."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Take no new request, finish the old ones, then say `Drained`."""

    deadline_s: float


class Verb(msgspec.Struct, frozen=True, tag="verb"):
    """An operator's command. `args` are plain data; no verb takes a command line."""

    name: str
    args: dict[str, Any] = {}


class Reply(msgspec.Struct, frozen=True, tag="reply", kw_only=True):
    """The answer to a verb. `code` is the exit status; `text` its last line when it failed."""

    code: int
    text: str = ""
    data: Any = None


FromWorker = Hello | Progress | Ready | Beat | Drained | Bye
ToWorker = Ack | Greet | Drain

encode = msgspec.msgpack.Encoder().encode
decode_at_daemon = msgspec.msgpack.Decoder(FromWorker | Verb).decode
decode_at_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
