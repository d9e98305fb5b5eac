"""The request plane's worker side: ZeroMQ batches in, an ASGI application called, batches out.

One ROUTER serves all frontends. An `Open` becomes a task that runs the application; what the tasks
of one loop pass sent is collected per frontend and leaves as one message when the pass is over.

Bounds: a worker has at most `OPEN_MAX` requests, beyond which an `Open` is answered with
`Fail("draining")`, which the frontend may send elsewhere; outboxes are bounded (see `outbox`); and
a cancelled application that doesn't end by itself within `CANCEL_GRACE_S` has its task cancelled,
again and again until it ends. A frontend that vanishes has all its requests cancelled.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from orchestrator.wire import plane
from orchestrator.wire.sockets import Context, Reader, Socket, bind_ipc, fields, make_socket
from workers.runtime import canary
from workers.runtime.engine import App
from workers.runtime.exchange import Exchange, scope_of
from workers.runtime.outbox import Outbox, Sent

log = logging.getLogger("dynorch.bridge")

OPEN_MAX = 4096
CANCEL_GRACE_S = 2.0
HWM_BATCHES = 64
"""Batches in a frontend's pipe before its outbox fills: some 64 engine steps."""
LINGER_MS = 1000
"""How long last answers may take to leave; on a machine that stalls, 250 ms were too few."""
MESSAGE_BYTES_MAX = 256 << 20
"""A larger message costs its sender the connection; frontends bound bodies far below."""
BLOCKED_RETRY_S = 0.01
"""Room in a full pipe is looked for this often: the edge that tells of it may have been eaten by
a send to another frontend."""
PROBE_AFTER_S = (0.05, 0.5)
"""When to look whose connection it was that broke: the event comes before the pipe is gone."""


class _Peer(NamedTuple):
    """One frontend, for as long as it has requests here."""

    outbox: Outbox
    exchanges: dict[int, Exchange]
    counts: bool
    """False for our own canary: its requests are in no figure, and nobody waits for them."""


class Bridge:
    """The ROUTER at `endpoint` and all requests that came through it."""

    def __init__(self, context: Context, endpoint: str) -> None:
        self.refusing = ""
        """Why new requests are refused; empty while they are taken."""
        self.started = False
        self.requests = 0
        self.inflight = 0
        self._context = context
        self._endpoint = endpoint
        self._peers: dict[bytes, _Peer] = {}
        self._dirty: list[Outbox] = []
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, app: App, state: dict[str, object]) -> None:
        """Bind, and serve `app` from the running loop."""
        self._app = app
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._socket = make_socket(self._context, zmq.ROUTER, hwm=HWM_BATCHES)
        self._socket.router_mandatory = True
        # A frontend that reconnects before we saw it go would otherwise never be heard again.
        self._socket.router_handover = True
        self._socket.maxmsgsize = MESSAGE_BYTES_MAX
        self._monitor: Socket = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        bind_ipc(self._socket, self._endpoint)
        self._reader = Reader(self._socket, self._on_message)
        self._reader.start()
        self._monitor_reader = Reader(self._monitor, self._on_disconnect)
        self._monitor_reader.start()
        self.started = True

    async def wait_idle(self, within_s: float | None = None) -> bool:
        """Wait until no request is in flight; False if that took too long."""
        try:
            await asyncio.wait_for(self._idle.wait(), within_s)
        except TimeoutError:
            return False
        return True

    def cancel_all(self, why: str) -> None:
        """Cancel every request; each still gets its `End` or `Fail`."""
        for peer in self._peers.values():
            for exchange in list(peer.exchanges.values()):
                self._cancel(exchange, why)

    def close(self) -> None:
        """Answer what is still open, send what waits, and let go of the sockets."""
        if self._socket.closed:
            return
        for peer in self._peers.values():
            for exchange in peer.exchanges.values():
                exchange.end("the worker stopped before the request had ended")
        self._flush_dirty()
        self._monitor_reader.stop()
        self._reader.stop()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        Path(self._endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
        # Last answers may still sit in pipes; a frontend that doesn't read can't hold us for long.
        self._socket.close(linger=LINGER_MS)

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            peer_id, payload = fields(frames)
            items = plane.decode_down(payload)
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("a frontend sent what isn't a batch: %s", error)
            return
        for item in items:
            if isinstance(item, plane.Open):
                self._open(peer_id, item)
            else:
                peer = self._peers.get(peer_id)
                exchange = peer.exchanges.get(item.id) if peer else None
                # Not there: it has ended, and its End crossed the Cancel on the way.
                if exchange is not None:
                    self._cancel(exchange, "cancelled by the frontend")

    def _open(self, peer_id: bytes, request: plane.Open) -> None:
        peer = self._peers.get(peer_id)
        if peer is None:
            peer = self._peers[peer_id] = _Peer(
                Outbox(peer_id), {}, counts=not peer_id.startswith(canary.PEER)
            )
        refusal = self.refusing
        if self.inflight >= OPEN_MAX:
            refusal = f"the worker has {OPEN_MAX} requests open, its limit"
        if request.id in peer.exchanges:
            log.error("request id %d opened twice: the second is ignored", request.id)
        elif refusal:
            peer.outbox.put(plane.Fail(request.id, "draining", refusal))
            self._flush_soon(peer.outbox)
        elif request.until and time.monotonic() >= request.until:
            text = "the request came too late for its KV cache"
            peer.outbox.put(plane.Fail(request.id, "late", text))
            self._flush_soon(peer.outbox)
        else:
            self._begin(peer, request)

    def _begin(self, peer: _Peer, request: plane.Open) -> None:
        exchange = Exchange(request, peer.outbox, self._flush_soon)
        peer.exchanges[request.id] = exchange
        if peer.counts:
            self.requests += 1
            self.inflight += 1
            self._idle.clear()
        exchange.task = self._loop.create_task(self._run(peer, exchange, request))

    async def _run(self, peer: _Peer, exchange: Exchange, request: plane.Open) -> None:
        """Run the application; nothing that it does gets past this boundary."""
        error = ""
        try:
            await self._app(scope_of(request, self._state), exchange.receive, exchange.send)
        except asyncio.CancelledError:
            error = "the request's task was cancelled"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            if not exchange.cancelled:
                log.exception("%s %s failed", request.method, request.path)
        exchange.end(error)
        del peer.exchanges[exchange.id]
        if peer.counts:
            self.inflight -= 1
            if not self.inflight:
                self._idle.set()
        self._forget(peer)

    def _cancel(self, exchange: Exchange, why: str) -> None:
        if not exchange.cancelled:
            exchange.cancel(why)
            self._loop.call_later(CANCEL_GRACE_S, self._insist, exchange)

    def _insist(self, exchange: Exchange) -> None:
        task = exchange.task
        if task is not None and not task.done():
            task.cancel()
            self._loop.call_later(CANCEL_GRACE_S, self._insist, exchange)

    def _forget(self, peer: _Peer) -> None:
        """Drop the record of a frontend that has nothing here any more."""
        if not peer.exchanges and not peer.outbox and self._peers.get(peer.outbox.peer) is peer:
            del self._peers[peer.outbox.peer]

    def _flush_soon(self, outbox: Outbox) -> None:
        if not outbox.dirty:
            outbox.dirty = True
            if not self._dirty:
                self._loop.call_soon(self._flush_dirty)
            self._dirty.append(outbox)

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        for outbox in dirty:
            self._flush(outbox)
        # A send may have eaten the edge that told of a message to read.
        self._reader.kick()

    def _flush(self, outbox: Outbox) -> None:
        if self._socket.closed:
            return
        sent = outbox.flush(self._socket)
        if sent is Sent.BLOCKED:
            # Still dirty: what is put meanwhile waits for this retry.
            self._loop.call_later(BLOCKED_RETRY_S, self._retry, outbox)
            return
        outbox.dirty = False
        peer = self._peers.get(outbox.peer)
        if peer is None or peer.outbox is not outbox:
            return
        if sent is Sent.GONE:
            self._lose(peer)
        else:
            self._forget(peer)

    def _retry(self, outbox: Outbox) -> None:
        self._flush(outbox)
        self._reader.kick()

    def _lose(self, peer: _Peer) -> None:
        self._peers.pop(peer.outbox.peer, None)
        peer.outbox.close()
        for exchange in list(peer.exchanges.values()):
            self._cancel(exchange, "the frontend is gone")

    def _on_disconnect(self, _event: list[bytes]) -> None:
        for delay_s in PROBE_AFTER_S:
            self._loop.call_later(delay_s, self._probe)

    def _probe(self) -> None:
        """Find out who is gone: an empty batch costs the living nothing and fails for the dead."""
        for peer in [] if self._socket.closed else list(self._peers.values()):
            try:
                self._socket.send_multipart([peer.outbox.peer, plane.encode([])], zmq.NOBLOCK)
            except zmq.Again:
                continue
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._lose(peer)
        self._reader.kick()
