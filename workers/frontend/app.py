"""The ASGI callable: our own paths, admission, and the one boundary where a request may fail.

A plain function of scope, receive and send; no framework stands on the data path. Whatever goes
wrong with one request ends here, as an answer to that request.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import time
from typing import Any
from urllib.parse import parse_qs

import msgspec

from workers.frontend import intake, problems, table
from workers.frontend.client import CLIENT_LEFT, Client
from workers.frontend.intake import Ask, Sifted
from workers.frontend.listener import EXTENSION
from workers.frontend.metrics import CONTENT_TYPE, Metrics
from workers.frontend.options import Options
from workers.frontend.ports import TOPOLOGY_HEADER
from workers.frontend.problems import Problem
from workers.frontend.relay import Relay
from workers.frontend.upstreams import Upstreams

log = logging.getLogger("dynorch.frontend")

JSON = (b"content-type", b"application/json")
READING = frozenset({"GET", "HEAD"})
BODY_PAUSE_MAX_S = 30.0
"""Longest wait for the next piece of a request's body."""
_UNCODED = frozenset({b"", b"identity"})
NO_MODEL = "-"
"""Label of requests that ended before it was known which model they are for."""


class App:
    """Serves one frontend's requests. `open` counts those that are in progress.

    `draining`: new ones are refused; while `yielding` those on connections that are open already
    are still served, each the last of its connection.
    """

    def __init__(
        self, upstreams: Upstreams, relay: Relay, metrics: Metrics, options: Options
    ) -> None:
        self.open = 0
        self.requests = 0
        self.draining = False
        self.yielding = False
        metrics.watch_open(lambda: self.open)
        metrics.watch_routes(lambda: upstreams.routes)
        self._idle = asyncio.Event()
        self._upstreams = upstreams
        self._relay = relay
        self._metrics = metrics
        self._options = options
        self._request_id = f"{os.urandom(6).hex()}-%x".encode()
        self._numbers = itertools.count(1)
        self._own = {
            "/health": self._health,
            "/ping": self._health,
            "/live": self._live,
            "/metrics": self._render_metrics,
            "/v1/models": self._models,
        }

    async def wait_idle(self, within_s: float) -> bool:
        """Wait until no request is open; False if that took too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.open:
                    self._idle.clear()
                    await self._idle.wait()
        return not self.open

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request, whatever happens."""
        request_id = self._request_id % next(self._numbers)
        client = Client(scope["extensions"][EXTENSION], send, scope["path"], request_id)
        client.last = self.draining
        try:
            await self._serve(scope, receive, client)
        except Exception:
            log.exception("request %s %s failed", scope["method"], scope["path"])
            if client.status:
                client.connection.abort()
            else:
                await client.refuse(problems.internal("The frontend failed on this request."))

    async def _serve(self, scope: dict[str, Any], receive: Any, client: Client) -> None:
        path = scope["path"]
        if path in self._own or path.startswith("/v1/models/"):
            await self._serve_own(scope["method"], path, client)
        elif intake.denied(path):
            text = f"{path} steers the engine and is not for clients; see `dynorch engine`."
            await client.refuse(problems.forbidden(text))
        elif self.draining and not self.yielding:
            text = "This frontend is stopping and takes no new requests."
            await client.refuse(problems.unavailable(text), close=True)
        elif self.open >= self._options.requests_max:
            self._metrics.rejected.inc()
            self._metrics.ended(NO_MODEL, 429, None, 0)
            await client.refuse(problems.too_many(self._options.requests_max))
        else:
            await self._admit(scope, receive, client)

    async def _admit(self, scope: dict[str, Any], receive: Any, client: Client) -> None:
        """Count the request while it is open."""
        began = time.monotonic()
        self.open += 1
        self.requests += 1
        model = NO_MODEL
        try:
            model = await self._relay_one(scope, receive, client)
        finally:
            self.open -= 1
            if not self.open:
                self._idle.set()
            self._count(client, model, began)

    def _count(self, client: Client, model: str, began: float) -> None:
        first_byte = client.first_byte_at
        status = client.status
        if client.left_early:
            self._metrics.disconnects.inc()
            status = CLIENT_LEFT
        self._metrics.ended(
            model,
            status,
            None if first_byte is None else first_byte - began,
            time.monotonic() - began,
        )

    async def _relay_one(self, scope: dict[str, Any], receive: Any, client: Client) -> str:
        """Read, examine and relay one request; returns the model it was for."""
        heading = intake.survey(scope["headers"])
        if heading.websocket:
            text = "WebSockets are not served here; use the HTTP API with `stream`."
            await client.refuse(problems.bad_request(text), close=True)
            return NO_MODEL
        if heading.coding not in _UNCODED:
            coding = heading.coding.decode("latin-1")
            await client.refuse(problems.compressed(coding), close=True)
            return NO_MODEL
        body = await self._read(receive, heading.length, client)
        if body is None:
            client.left_early = True
            return NO_MODEL
        sifted = body if isinstance(body, Problem) else intake.sift(body, heading.content_type)
        if isinstance(sifted, Problem):
            await client.refuse(sifted)
            return NO_MODEL
        if sifted.stripped:
            self._metrics.stripped.inc()
        model = self._model(scope, sifted)
        if isinstance(model, Problem):
            await client.refuse(model)
            return NO_MODEL
        headers = heading.forwarded
        headers.append((b"x-request-id", client.request_id))
        if sifted.body:
            headers.append((b"content-length", b"%d" % len(sifted.body)))
        ask = Ask(scope["method"], scope["path"], scope["query_string"], headers, sifted.body)
        await self._relay.carry(ask, sifted.fields, model, client)
        return model

    async def _read(self, receive: Any, length: int, client: Client) -> bytes | Problem | None:
        """Read the body; a Problem when it is over the bound, None when the client has gone."""
        body_max = self._options.body_max
        if length > body_max:
            return problems.too_large(body_max)
        if client.connection.body_arrived:
            whole: bytes = (await receive())["body"]
            return whole if len(whole) <= body_max else problems.too_large(body_max)
        parts: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_PAUSE_MAX_S):
                    message = await receive()
            except TimeoutError:
                return problems.too_slow(BODY_PAUSE_MAX_S)
            if message["type"] != "http.request":
                return None
            parts.append(message["body"])
            size += len(message["body"])
            if size > body_max:
                return problems.too_large(body_max)
            if not message["more_body"]:
                return b"".join(parts)

    def _model(self, scope: dict[str, Any], sifted: Sifted) -> str | Problem:
        """Find out whom the request is for: its body says, its query may, or it doesn't matter."""
        named = sifted.model
        if named is None and scope["query_string"]:
            named = parse_qs(scope["query_string"].decode("latin-1")).get("model", [None])[0]
        if named is None and scope["method"] == "OPTIONS":
            routable = self._upstreams.routable()
            named = next((name for name, count in routable.items() if count), None)
        return self._upstreams.choose(named)

    # What we answer ourselves.

    async def _serve_own(self, method: str, path: str, client: Client) -> None:
        if method == "OPTIONS":
            await client.start(204, [(b"allow", b"GET, HEAD, OPTIONS")])
            await client.write(b"", last=True)
        elif method not in READING:
            await client.refuse(problems.wrong_method(method, path))
        elif path in self._own:
            await self._own[path](client)
        else:
            await self._model_card(path.removeprefix("/v1/models/"), client)

    async def _health(self, client: Client) -> None:
        status, body = table.health(
            self._upstreams.routes,
            self._upstreams.routable(),
            self._upstreams.notes(),
            self._upstreams.degraded(),
            enforce=self._options.kv_transfer.enforce,
            draining=self.draining,
        )
        await client.answer(status, [JSON], msgspec.json.encode(body))

    async def _live(self, client: Client) -> None:
        topology = (TOPOLOGY_HEADER.encode(), self._options.topology.encode())
        await client.answer(200, [JSON, topology], b'{"status":"live"}')

    async def _render_metrics(self, client: Client) -> None:
        await client.answer(200, [(b"content-type", CONTENT_TYPE)], self._metrics.render())

    async def _models(self, client: Client) -> None:
        listing = {"object": "list", "data": self._upstreams.cards()}
        await client.answer(200, [JSON], msgspec.json.encode(listing))

    async def _model_card(self, name: str, client: Client) -> None:
        card = next((card for card in self._upstreams.cards() if card["id"] == name), None)
        if card is not None:
            await client.answer(200, [JSON], msgspec.json.encode(card))
            return
        model = self._upstreams.choose(name)
        await client.refuse(model if isinstance(model, Problem) else self._upstreams.explain(model))
