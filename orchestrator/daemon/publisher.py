"""The event stream: every event and decision, numbered, published and kept.

One PUB socket for two kinds of topic: `event/` for people and views, `routes/NAME` for the
frontends. Events also go to the journal with the core's own input and output beside them, so that
a simulator can replay what happened. PUB drops for a reader that is too slow; the journal doesn't.
"""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import zmq

from orchestrator.core.replay import Decision, Replay
from orchestrator.host.journal import Journal
from orchestrator.wire import events, routes
from orchestrator.wire.sockets import Context, bind_ipc, make_socket


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the journal: what people see, and what the machine saw (for replay)."""

    e: events.Event
    core: Any = None


class Decided(Record, frozen=True, kw_only=True):
    """The same line, read for a replay."""

    core: Decision | None = None


encode_record = msgspec.json.Encoder().encode
decode_record = msgspec.json.Decoder(Record).decode
decode_decided = msgspec.json.Decoder(Decided).decode


def last_seq(journal: Journal) -> int:
    """The number of the journal's last event, 0 when it has none that can be read."""
    for line in reversed(journal.last(5)):
        try:
            return decode_record(line).e.seq
        except msgspec.DecodeError:
            continue  # a line torn by a power loss
    return 0


def replay(lines: Iterable[bytes]) -> Replay:
    """Decide again what a journal holds; lines that can't be read are gaps."""
    done = Replay()
    for line in lines:
        try:
            record = decode_decided(line)
            if record.core is not None:
                done.take(record.e.subject, record.core)
        except msgspec.DecodeError:
            done.skipped += 1  # torn by a power loss, or another version's
    return done


class Publisher:
    """Owns the PUB socket and the journal."""

    def __init__(self, context: Context, endpoint: str, journal: Journal) -> None:
        self._socket = make_socket(context, zmq.PUB, hwm=100_000)
        self._endpoint = endpoint
        self._journal = journal
        self._seq = 0

    @property
    def generation(self) -> int:
        """See `Journal.generation`."""
        return self._journal.generation

    def start(self) -> None:
        """Bind, and go on numbering where the last daemon stopped."""
        self._seq = last_seq(self._journal)
        bind_ipc(self._socket, self._endpoint)

    def stop(self) -> None:
        """Close; what is still queued gets a moment to leave."""
        self._socket.linger = 200
        self._socket.close()
        self._journal.close()

    def event(
        self,
        subject: object,
        what: str,
        *,
        phase: str = "",
        reason: str = "",
        detail: dict[str, str] | None = None,
        core: Decision | None = None,
    ) -> None:
        """Publish and keep one event. `core`: the step behind it."""
        self._seq += 1
        event = events.Event(
            seq=self._seq, wall=time.time(), subject=str(subject), what=what,
            phase=phase, reason=reason, detail=detail or {},
        )  # fmt: skip
        self._journal.append(encode_record(Record(e=event, core=core)))
        self._socket.send_multipart([events.TOPIC, events.encode(event)])

    def routes(self, table: routes.Routes) -> None:
        """Publish a routing table."""
        topic = routes.TOPIC + table.topology.encode()
        self._socket.send_multipart([topic, routes.encode(table)])
