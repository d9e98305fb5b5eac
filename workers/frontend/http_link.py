"""A plain command that is an OpenAI server, as this frontend sees it: HTTP instead of our plane.

It is used like any link. What it lacks is the connection whose end says that a process is gone: the
daemon watches the process, and a connection that is refused makes it unusable here until it
answers a question again. It gets what our workers get: nothing that only we may set. Of a stream of
events its client gets whole ones, so that a stream which is cut can still end with an error.
"""

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from orchestrator.wire.plane import Head
from orchestrator.wire.routes import Route
from workers.frontend.events import WholeEvents, is_stream
from workers.frontend.exchange import Sink
from workers.frontend.intake import Ask
from workers.frontend.link import ASK_AGAIN_S, Link, State
from workers.frontend.retries import Failure

CONNECT_WITHIN_S = 5.0
SETTLE_S = 5.0
"""How long the first answer holds up the table. The daemon starts no worker that can't be reached;
what a file says of a server need not be true, and no other change may wait for that."""
KEEP_ALIVE_S = 2.0
"""Shorter than servers keep an idle connection: a POST into one that is being closed is lost."""
_PATH_SAFE = "/:@!$&'()*+,;=~"
_SET_BY_CLIENT = frozenset({b"host", b"content-length"})
_closing: set[asyncio.Task[None]] = set()
"""Sessions on their way out; the loop itself keeps no task alive."""


class HttpLink(Link):
    """Owns one HTTP session, and a task for each request that is open on it."""

    engine = "http"

    def start(self) -> None:
        """Ask it what it serves; `on_change` tells of what follows."""
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._listed: dict[str, dict[str, Any]] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
        )
        self._settles_at = self._loop.time() + SETTLE_S
        self._settle_timer = self._loop.call_at(self._settles_at, self._on_change, self)
        self._ask()

    @property
    def settled(self) -> bool:
        """Whether it can be used, or has had its time to answer."""
        return self.usable or self._loop.time() >= self._settles_at

    def open(self, sink: Sink, ask: Ask, until: float = 0.0) -> int:
        """Send a request; what comes back goes to `sink`. Nobody here has tickets: no `until`."""
        assert until == 0.0
        number = next(self._ids)
        self._sinks[number] = sink
        task = self._tasks[number] = self._loop.create_task(self._exchange(number, ask))
        # A task that is cancelled before its first step runs none of its own code.
        task.add_done_callback(lambda _task: self._ended(number))
        return number

    def cancel(self, number: int) -> None:
        """Break the request off; its sink hears no more. Does nothing if it has ended."""
        if self._sinks.get(number) is not None:
            self._sinks[number] = None
            self._tasks[number].cancel()

    def close(self) -> None:
        """Drop all connections; what is still open fails."""
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._settle_timer.cancel()
        self._stop_asking()
        self._fail_all("the connection was closed")
        for task in self._tasks.values():
            task.cancel()
        closing = self._loop.create_task(self._session.close())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)

    async def _exchange(self, number: int, ask: Ask) -> None:
        """Carry one request; every end of it is told to the sink, if it still listens."""
        failure: Failure | None = None
        text = ""
        try:
            await self._carry(number, ask)
        except aiohttp.ClientConnectorError as error:
            failure, text = Failure.UNSENT, f"{self.life} can't be reached: {error}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure, text = Failure.LOST, f"{self.life}: {type(error).__name__}: {error}"
        sink = self._sinks.pop(number, None)
        if failure is Failure.UNSENT and self.state is State.UP:
            self._unreachable(text)
        if sink is not None and failure is not None:
            sink.fail(failure, text)
        elif sink is not None:
            sink.end()

    def _ended(self, number: int) -> None:
        self._sinks.pop(number, None)
        self._tasks.pop(number, None)
        if self.leaving:
            self._close_if_done()

    async def _carry(self, number: int, ask: Ask) -> None:
        path = quote(ask.path, safe=_PATH_SAFE)
        query = f"?{ask.query.decode('latin-1')}" if ask.query else ""
        url = URL(f"{self.route.endpoint}{path}{query}", encoded=True)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in ask.headers
            if name not in _SET_BY_CLIENT
        ]
        async with self._session.request(
            ask.method, url, data=ask.body or None, headers=headers, allow_redirects=False
        ) as response:
            head = Head(number, response.status, list(response.raw_headers))
            sink = self._sinks.get(number)
            if sink is not None:
                sink.begin(head)
            events = WholeEvents() if is_stream(head.headers) else None
            async for data in response.content.iter_any():
                self._add(number, data if events is None else events.take(data))
            rest = b"" if events is None else events.rest()
            if rest and not rest.endswith(b"\n") and _ends_with_connection(response):
                raise aiohttp.ClientPayloadError("the connection ended within an event")
            self._add(number, rest)

    def _add(self, number: int, data: bytes) -> None:
        sink = self._sinks.get(number)
        if sink is not None and data:
            sink.add(data)

    def _unreachable(self, text: str) -> None:
        """Send no more there until it has answered a question."""
        self.state = State.DOWN
        self.trouble = text
        self._stop_asking()
        self._ask_timer = self._loop.call_later(ASK_AGAIN_S, self._ask)
        self._on_change(self)

    def stay(self, route: Route) -> None:
        """Be in the table (again); which models it serves is the table's to say."""
        super().stay(route)
        self.cards = self._shown()

    def _answered(self, cards: list[dict[str, Any]]) -> None:
        self._listed = {card["id"]: card for card in cards}
        super()._answered(self._shown())

    def _shown(self) -> list[dict[str, Any]]:
        """Show of its models those that the topology names, whether it lists them or not."""
        plain = {"object": "model", "owned_by": self.route.role}
        return [self._listed.get(name, {"id": name} | plain) for name in self.route.models]


def _ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    """Whether an answer that was cut looks like one that is complete."""
    coded = "transfer-encoding" in response.headers
    return response.content_length is None and not coded
