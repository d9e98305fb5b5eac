"""One worker, as this frontend sees it: its connection, and every request that is open on it.

The routing table says who should be reachable; the link finds out. A monitor on the ZeroMQ socket
reports the connection's end the moment the worker's process is gone, so a dead worker's requests
are failed over without waiting for the daemon, which may itself be dead. The socket reconnects by
itself; each time, the worker must answer a question before it counts as routable again.

A link that has left the table takes no new requests and closes when its last one has ended.
"""

import asyncio
import contextlib
import enum
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from orchestrator.wire import plane
from orchestrator.wire.routes import Route
from orchestrator.wire.sockets import Context, Reader, Socket, make_socket
from workers.frontend.exchange import Sink
from workers.frontend.inquiry import Inquiry
from workers.frontend.intake import Ask
from workers.frontend.retries import FROM_WIRE, Failure

HWM_BATCHES = 256
"""Batches that wait in each direction; a worker that lets more wait than that isn't reading."""
DRAIN_BATCHES = 8
"""Batches read in one loop pass. What a pass brought for a stream is written at once, so this,
with the size of a batch, bounds what a client gets beyond `stream-buffer-max` before it is known
that it doesn't read."""
RECONNECT_MS, RECONNECT_MAX_MS = 100, 2000
ANSWER_WITHIN_S = 10.0
ASK_AGAIN_S, ASK_AGAIN_MAX_S = 0.25, 5.0
_QUESTION = Ask("GET", "/v1/models", b"", [(b"host", b"dynorch"), (b"accept", b"*/*")], b"")
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED


class State(enum.Enum):
    """Where the connection is; the value completes the sentence "this frontend ..."."""

    CONNECTING = "is not connected to it yet"
    ASKING = "is connected to it and waits for its first answer"
    UP = "gets answers from it"
    DOWN = "lost its connection to it"
    CLOSED = "has closed its connection to it"


class Link:
    """Owns one DEALER, its monitor, and the sinks of the requests that are open on it.

    `engine`: what answers, where that isn't the topology's engine.
    """

    engine = ""

    def __init__(
        self,
        context: Context,
        route: Route,
        identity: bytes,
        ids: Iterator[int],
        on_change: Callable[["Link"], None],
    ) -> None:
        self.route = route
        self.state = State.CONNECTING
        self.trouble = ""
        self.leaving = False
        self.cards: list[dict[str, Any]] = []
        self._context = context
        self._identity = identity
        self._ids = ids
        self._on_change = on_change
        self._sinks: dict[int, Sink | None] = {}
        self._outbox: list[plane.Down] = []
        self._asked: int | None = None
        self._ask_timer: asyncio.TimerHandle | None = None
        self._ask_again_s = ASK_AGAIN_S

    @property
    def life(self) -> str:
        """The life at the other end."""
        return self.route.life

    @property
    def inflight(self) -> int:
        """Requests whose end the worker hasn't said yet, cancelled ones included."""
        return len(self._sinks)

    @property
    def usable(self) -> bool:
        """Whether new requests may be sent to it."""
        return self.state is State.UP and not self.leaving

    @property
    def settled(self) -> bool:
        """Whether a table with it counts as applied, as far as it is concerned."""
        return self.usable

    def start(self) -> None:
        """Begin to connect; returns at once, `on_change` tells of what follows."""
        self._loop = asyncio.get_running_loop()
        socket: Socket = make_socket(self._context, zmq.DEALER, hwm=HWM_BATCHES)
        socket.setsockopt(zmq.ROUTING_ID, self._identity)
        # Without a connection a send must fail, not wait for one: the request can go elsewhere.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket = socket
        self._monitor: Socket = socket.get_monitor_socket(_EVENTS)
        self._reader = Reader(socket, self._on_message, DRAIN_BATCHES)
        self._monitor_reader = Reader(self._monitor, self._on_event)
        self._reader.start()
        self._monitor_reader.start()
        socket.connect(self.route.endpoint)

    def open(self, sink: Sink, ask: Ask, until: float = 0.0) -> int:
        """Send a request; what comes back goes to `sink`. Returns its id, for `cancel`.

        `until`: when it must have reached the worker, 0 for whenever.
        """
        number = next(self._ids)
        self._sinks[number] = sink
        path, query, headers = ask.path, ask.query, ask.headers
        self._put(plane.Open(number, ask.method, path, query, headers, ask.body, until))
        return number

    def cancel(self, number: int) -> None:
        """Tell the worker to stop; its sink hears no more. Does nothing if it has ended."""
        if self._sinks.get(number) is not None:
            self._sinks[number] = None
            self._put(plane.Cancel(number))

    def leave(self) -> None:
        """Take no new requests, and close when the open ones have ended."""
        self.leaving = True
        self._close_if_done()

    def stay(self, route: Route) -> None:
        """Be in the table (again), with what it says now."""
        self.route = route
        self.leaving = False

    def close(self) -> None:
        """Drop the connection; what is still open on it fails."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._stop_asking()
        self._reader.stop()
        self._monitor_reader.stop()
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._fail_all("the connection was closed")

    def _close_if_done(self) -> None:
        if self.leaving and (not self._sinks or self.state is not State.UP):
            self.close()
            self._on_change(self)

    # Outgoing.

    def _put(self, item: plane.Down) -> None:
        self._outbox.append(item)
        if len(self._outbox) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what this loop pass produced. What can't be sent now isn't queued: it fails."""
        items, self._outbox = self._outbox, []
        if self.state is State.CLOSED:
            return
        for start in range(0, len(items), plane.BATCH_ITEMS_MAX):
            batch = items[start : start + plane.BATCH_ITEMS_MAX]
            try:
                self._socket.send(plane.encode(batch), zmq.NOBLOCK, copy=True)
            except zmq.Again:
                self._unsent(batch)
        self._reader.kick()

    def _unsent(self, batch: list[plane.Down]) -> None:
        """Fail what wasn't sent. A lost `Cancel` needs no care: nobody reads at the other end."""
        for item in batch:
            sink = self._sinks.pop(item.id, None)
            if sink is not None and isinstance(item, plane.Open):
                sink.fail(Failure.UNSENT, f"{self.route.life} takes no messages")

    # Incoming.

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            items = plane.decode_up(frames[-1])
        except msgspec.DecodeError as error:
            self._lost(f"it sent something that is not the request plane's: {error}")
            return
        sinks = self._sinks
        for item in items:
            sink = sinks.get(item.id)
            kind = type(item)
            if kind is plane.Chunk:
                if sink is not None:
                    sink.add(item.data)  # type: ignore[union-attr]
            else:
                self._on_edge(item, sink)

    def _on_edge(self, item: plane.Up, sink: Sink | None) -> None:
        """Handle the first and the last of a request."""
        if isinstance(item, plane.Head):
            if sink is not None:
                sink.begin(item)
            return
        self._sinks.pop(item.id, None)
        if sink is not None:
            if isinstance(item, plane.Fail):
                sink.fail(FROM_WIRE.get(item.code, Failure.APP_ERROR), item.text)
            else:
                sink.end()
        if self.leaving:
            self._close_if_done()

    # The connection.

    def _on_event(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._ask_again_s = ASK_AGAIN_S
            self._ask()
        elif event == zmq.EVENT_DISCONNECTED:
            self._read_the_rest()
            self._lost("its process is gone or closed the connection")

    def _read_the_rest(self) -> None:
        """Read what arrived before the end: an answer that is complete must not count as lost."""
        while self.state is not State.CLOSED:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(frames)

    def _lost(self, text: str) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.DOWN
        self.trouble = text
        self._stop_asking()
        self._fail_all(text)
        if self.leaving:
            self.close()
        self._on_change(self)

    def _fail_all(self, text: str) -> None:
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            if sink is not None:
                sink.fail(Failure.LOST, f"{self.route.life}: {text}")

    # The first answer.

    def _ask(self) -> None:
        self._stop_asking()
        self.state = State.ASKING
        inquiry = Inquiry(self._answered, self._not_answered)
        self._asked = self.open(inquiry, _QUESTION)
        self._ask_timer = self._loop.call_later(
            ANSWER_WITHIN_S, self._not_answered, f"no answer within {ANSWER_WITHIN_S:g} s"
        )

    def _answered(self, cards: list[dict[str, Any]]) -> None:
        self._stop_asking()
        self.cards = cards
        self.state = State.UP
        self.trouble = ""
        self._on_change(self)

    def _not_answered(self, why: str) -> None:
        """Ask again later, as long as the connection stands."""
        if self.state is not State.ASKING:
            return
        self._stop_asking()
        self.trouble = why
        self._ask_timer = self._loop.call_later(self._ask_again_s, self._ask)
        self._ask_again_s = min(self._ask_again_s * 2, ASK_AGAIN_MAX_S)
        self._on_change(self)

    def _stop_asking(self) -> None:
        if self._ask_timer is not None:
            self._ask_timer.cancel()
            self._ask_timer = None
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self.cancel(asked)
