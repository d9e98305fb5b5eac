"""The simulated engine's HTTP face: a plain ASGI application, seven routes, no framework."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from workers.runtime.canary import MARK
from workers.runtime.engine import Message, Receive, Scope, Send
from workers.sim import answers, requests, shapes, tokens
from workers.sim.faults import Faults
from workers.sim.generate import ENGINE_HEADER, JSON_HEADERS, answer, generate
from workers.sim.metrics import Metrics
from workers.sim.options import Options
from workers.sim.sink import EngineDeadError, GenerationError
from workers.sim.stepper import Stepper
from workers.sim.ticket import wish_of

log = logging.getLogger("dynorch.sim")


class Request(NamedTuple):
    """One request, its body read."""

    headers: dict[bytes, bytes]
    body: bytes
    receive: Receive
    send: Send


class App:
    """Routes requests to the batch. `models`: the names that requests may use."""

    def __init__(
        self,
        models: list[str],
        options: Options,
        stepper: Stepper,
        faults: Faults,
        registry: CollectorRegistry,
    ) -> None:
        self._models = models
        self._options = options
        self._stepper = stepper
        self._faults = faults
        self._metrics = Metrics(stepper, registry)
        self._created = int(time.time())
        self._routes = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._scrape,
            ("GET", "/v1/models"): self._list_models,
            ("POST", "/v1/completions"): self._completions,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP isn't wanted."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        route = self._routes.get((scope["method"], scope["path"]))
        body = (await receive())["body"]
        try:
            if route is None:
                raise self._no_route(scope)
            await route(Request(headers, body, receive, send))
        except shapes.RequestError as error:
            text = shapes.problem(str(error), error.status, error.param)
            await answer(send, error.status, text, JSON_HEADERS)
        except (EngineDeadError, GenerationError) as error:
            await answer(send, 500, shapes.problem(str(error), 500), JSON_HEADERS)

    def _no_route(self, scope: Scope) -> shapes.RequestError:
        known = any(path == scope["path"] for _method, path in self._routes)
        status = 405 if known else 404
        return shapes.RequestError("Method Not Allowed" if known else "Not Found", status=status)

    async def _completions(self, request: Request) -> None:
        request = self._count(request)
        ask = requests.read(request.body, requests.AskCompletion)
        with self._or_rejected(ask):
            head = self._heading("cmpl", request, self._model(ask.model))
            job = requests.completion_job(ask, self._options)
        await self._generate(request, job, answers.Completions(job, head))

    async def _chat(self, request: Request) -> None:
        request = self._count(request)
        ask = requests.read(request.body, requests.AskChat)
        with self._or_rejected(ask):
            head = self._heading("chatcmpl", request, self._model(ask.model))
            job = requests.chat_job(ask, self._options)
        await self._generate(request, job, answers.Chats(job, head))

    async def _generate(
        self, request: Request, job: requests.Job, dialect: answers.Dialect
    ) -> None:
        if job.wish is not None and self._stepper.connector is None:
            log.warning(
                "Got kv_transfer_params, but no KVConnector found. Disabling KVTransfer for this"
                " request."
            )
        await generate(job, dialect, self._stepper, request.receive, request.send)

    @contextlib.contextmanager
    def _or_rejected(self, ask: requests.Ask) -> Iterator[None]:
        """Let the engine that keeps blocks for a request hear it if we refuse the request."""
        try:
            yield
        except shapes.RequestError:
            if self._stepper.connector is not None:
                self._stepper.connector.rejected(wish_of(ask.kv_transfer_params))
            raise

    async def _tokenize(self, request: Request) -> None:
        ask = requests.read(request.body, requests.AskTokenize)
        self._model(ask.model)
        if ask.messages is not None:
            ids = requests.chat_prompt(ask, ask.messages, self._options)
        elif ask.prompt is not None:
            ids = tokens.encode(ask.prompt)
        else:
            raise shapes.RequestError("give prompt or messages", param="prompt")
        found = shapes.Tokenized(len(ids), self._options.max_model_len, ids)
        if ask.return_token_strs:
            found.token_strs = [tokens.TEXTS[token] for token in ids]
        await answer(request.send, 200, shapes.encode(found), JSON_HEADERS)

    async def _detokenize(self, request: Request) -> None:
        ask = requests.read(request.body, requests.AskDetokenize)
        self._model(ask.model)
        requests.check_ids(ask.tokens, "tokens")
        body = shapes.encode(shapes.Detokenized(tokens.decode(ask.tokens)))
        await answer(request.send, 200, body, JSON_HEADERS)

    async def _list_models(self, request: Request) -> None:
        length, root = self._options.max_model_len, self._models[0]
        models = [shapes.Model(name, self._created, length, root) for name in self._models]
        await answer(request.send, 200, shapes.encode(shapes.Models(models)), JSON_HEADERS)

    async def _health(self, request: Request) -> None:
        status = 503 if self._stepper.death else 200
        await answer(request.send, status, b"", [ENGINE_HEADER])

    async def _scrape(self, request: Request) -> None:
        headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8"), ENGINE_HEADER]
        await answer(request.send, 200, self._metrics.render(), headers)

    def _count(self, request: Request) -> Request:
        """Tell the faults of a client's request; the canary is none."""
        if MARK[0] in request.headers or self._faults.on_request(self._stepper.tokens):
            return request
        return request._replace(send=_nowhere)

    def _model(self, name: str | None) -> str:
        """Find the model; without a name it is the first, as with vLLM."""
        if name in (None, ""):
            return self._models[0]
        if name not in self._models:
            raise shapes.RequestError(
                f"The model `{name}` does not exist.", param="model", status=404
            )
        return name

    @staticmethod
    def _heading(kind: str, request: Request, model: str) -> answers.Heading:
        given = request.headers.get(b"x-request-id", b"").decode("latin-1")
        return answers.heading(kind, given or secrets.token_hex(16), model)


async def _nowhere(message: Message) -> None:
    """Lose an answer: its end never comes, so the client waits until it has enough."""
    if not message.get("more_body", False) and message["type"] == "http.response.body":
        await asyncio.Event().wait()
