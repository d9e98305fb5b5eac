"""Where the routing table comes from: the daemon's event stream.

The daemon publishes the whole table on every change, and once more whenever a frontend says hello.
A subscription takes a moment to reach a publisher, so that one can be missed; therefore whoever
said hello says it again until a table has come. While no daemon is there, the last table stands.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec
import zmq

from orchestrator.wire import routes
from orchestrator.wire.routes import Routes
from orchestrator.wire.sockets import Context, Reader, make_socket

log = logging.getLogger("dynorch.frontend")

RECONNECT_MS, RECONNECT_MAX_MS = 100, 1000
ASK_AGAIN_S, ASK_AGAIN_MAX_S = 0.2, 5.0


class Subscription:
    """Reads one topology's tables; `ask` asks the daemon to publish it."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        topology: str,
        on_table: Callable[[Routes], None],
        ask: Callable[[], None],
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._topic = routes.TOPIC + topology.encode()
        self._on_table = on_table
        self._ask = ask
        self._ask_again_s = ASK_AGAIN_S
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Subscribe, and ask until the first table comes."""
        self._socket = make_socket(self._context, zmq.SUB)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.setsockopt(zmq.SUBSCRIBE, self._topic)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._reader = Reader(self._socket, self._on_message)
        self._monitor_reader = Reader(self._monitor, lambda _event: self._expect())
        self._reader.start()
        self._monitor_reader.start()
        self._socket.connect(self._endpoint)

    def close(self) -> None:
        """Stop listening."""
        self._cancel()
        self._reader.stop()
        self._monitor_reader.stop()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _expect(self) -> None:
        """Ask now that a publisher is there: what it said before, we can't have heard."""
        self._cancel()
        self._ask_again_s = ASK_AGAIN_S
        self._ask_again()

    def _ask_again(self) -> None:
        self._ask()
        self._timer = asyncio.get_running_loop().call_later(self._ask_again_s, self._ask_again)
        self._ask_again_s = min(self._ask_again_s * 2, ASK_AGAIN_MAX_S)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_message(self, frames: list[bytes]) -> None:
        if frames[0] != self._topic:
            return
        try:
            table = routes.decode(frames[-1])
        except msgspec.DecodeError as error:
            log.warning("the daemon published a routing table that can't be read: %s", error)
            return
        self._cancel()
        self._on_table(table)
