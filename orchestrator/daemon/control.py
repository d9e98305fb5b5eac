"""The control socket: one ROUTER for workers and operators.

Frames come in, typed messages go out to the two callbacks; nothing is decided here. What can't be
decoded is answered (an operator) or dropped and reported (a worker): a stranger's bytes must never
stop the daemon. A worker's routing id is its life, so a message is attributed by the socket and not
by what the message claims.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import zmq

from orchestrator.wire import messages
from orchestrator.wire.ids import LifeId
from orchestrator.wire.sockets import Context, Reader, bind_ipc, fields, make_socket

VERBS_MAX = 32
"""Verbs being answered at the same time; further ones are refused, not queued."""

KEPT_MAX = 4096
"""Orders for workers that aren't connected; further ones are lost, and a deadline notices."""

FRAME_BYTES_MAX = 1 << 20
"""Who sends more is disconnected. A verb's variables and a worker's last words need far less."""

OnWorker = Callable[[LifeId, messages.FromWorker], None]
OnVerb = Callable[[messages.Verb], Awaitable[messages.Reply | None]]
OnUnreadable = Callable[[LifeId, str], None]


class Control:
    """Owns the ROUTER. `on_verb` runs as a task of its own; `on_worker` is called at once.

    `on_unreadable` hears of a worker's message that makes no sense: of the first, the second, the
    fourth and so on, so that a worker which says nothing else can't fill the journal.
    """

    def __init__(
        self,
        context: Context,
        endpoint: str,
        on_worker: OnWorker,
        on_verb: OnVerb,
        on_unreadable: OnUnreadable,
    ) -> None:
        self._socket = make_socket(context, zmq.ROUTER)
        self._endpoint = endpoint
        self._on_worker = on_worker
        self._on_verb = on_verb
        self._on_unreadable = on_unreadable
        self._reader = Reader(self._socket, self._received)
        self._verbs: set[asyncio.Task[None]] = set()
        self._kept: dict[bytes, bytes] = {}
        self.malformed = 0

    def start(self) -> None:
        """Bind and begin to read in the running loop."""
        # A worker that reconnects after its daemon was replaced must be able to take over its own
        # routing id while the old connection is still being torn down.
        self._socket.router_handover = True
        self._socket.router_mandatory = True
        self._socket.maxmsgsize = FRAME_BYTES_MAX
        bind_ipc(self._socket, self._endpoint)
        self._reader.start()

    def pause(self) -> None:
        """Read nothing more. What is being answered still is."""
        self._reader.stop()

    async def stop(self) -> None:
        """Answer what is being answered, then close."""
        self.pause()
        if self._verbs:
            await asyncio.wait(self._verbs, timeout=1.0)
        self._socket.linger = 200  # the last reply must still leave, but may not hold us up
        self._socket.close()

    def send(self, life: LifeId, message: messages.ToWorker) -> None:
        """Send to a worker that is heard now; if it isn't connected, its silence will tell."""
        self._send(str(life).encode(), messages.encode(message))

    def order(self, life: LifeId, message: messages.ToWorker) -> None:
        """Send to a worker, or keep it until the worker is heard.

        One that still reconnects to a new daemon must not miss what it is told. One order is kept
        for each, the newest.
        """
        peer, payload = str(life).encode(), messages.encode(message)
        if not self._send(peer, payload) and len(self._kept) < KEPT_MAX:
            self._kept[peer] = payload

    def forget(self, life: LifeId) -> None:
        """This life is over; another topology may give its name to a new one some day."""
        self._kept.pop(str(life).encode(), None)

    def _send(self, to: bytes, payload: bytes) -> bool:
        try:
            self._socket.send_multipart([to, payload], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False  # EHOSTUNREACH or EAGAIN: the peer is gone or stuck, its lease will tell
        finally:
            self._reader.kick()
        return True

    def _received(self, frames: list[bytes]) -> None:
        peer, life = frames[0], _life(frames[0])
        try:
            _, payload = fields(frames)
            message = messages.decode_at_daemon(payload)
        except (ValueError, msgspec.DecodeError) as error:
            self._unreadable(peer, life, str(error))
            return
        if isinstance(message, messages.Verb):
            self._answer(peer, message)
            return
        if life is None:
            self._unreadable(peer, None, "a worker's message, but not from a worker")
            return
        kept = self._kept.pop(peer, None)
        if kept is not None:
            self._send(peer, kept)
        self._on_worker(life, message)

    def _unreadable(self, peer: bytes, life: LifeId | None, error: str) -> None:
        self.malformed += 1
        if life is None:
            self._refuse(peer, f"that message can't be read: another version of dynorch? {error}")
        elif self.malformed & (self.malformed - 1) == 0:
            self._on_unreadable(life, error)

    def _refuse(self, peer: bytes, text: str) -> None:
        self._send(peer, messages.encode(messages.Reply(code=1, text=text)))

    def _answer(self, peer: bytes, verb: messages.Verb) -> None:
        if len(self._verbs) >= VERBS_MAX:
            self._refuse(peer, f"the daemon is answering {VERBS_MAX} verbs already; try again")
            return
        task = asyncio.ensure_future(self._run(peer, verb))
        self._verbs.add(task)
        task.add_done_callback(self._verbs.discard)

    async def _run(self, peer: bytes, verb: messages.Verb) -> None:
        try:
            reply = await self._on_verb(verb)
        except Exception as error:  # noqa: BLE001  the request boundary: a verb's bug is its own
            reply = messages.Reply(
                code=1, text=f"{verb.name}: {type(error).__name__}: {error} (a bug in dynorch)"
            )
        if reply is not None:  # else the daemon ends, and whoever asked will see that
            self._send(peer, messages.encode(reply))


def _life(peer: bytes) -> LifeId | None:
    """Whose routing id this is; None when it isn't a worker's."""
    try:
        return LifeId.parse(peer.decode())
    except ValueError:
        return None
