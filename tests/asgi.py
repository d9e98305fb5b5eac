"""Call an ASGI application from a test, and read what the simulator's answers say."""

import asyncio
import json
from typing import NamedTuple

from orchestrator.wire.config import WorkerConfig
from workers.sim.engine import SimEngine


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    parts: list[bytes]

    @property
    def body(self):
        return b"".join(self.parts)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def events(self):
        lines = self.body.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def call(app, path, body=None, *, method=None, headers=(), leave=None):
    """One request; `leave`: an asyncio.Event at which the client disconnects."""
    leave = leave or asyncio.Event()
    inbox = [{"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}]
    sent = []

    async def receive():
        if inbox:
            return inbox.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method or ("GET" if body is None else "POST"),
        "path": path,
        "query_string": b"",
        "headers": list(headers),
    }
    await app(scope, receive, send)
    if not sent:
        return None
    assert sent[0]["type"] == "http.response.start"
    assert all(message["type"] == "http.response.body" for message in sent[1:])
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [
        False
    ]
    return Answer(
        sent[0]["status"],
        dict(sent[0]["headers"]),
        [message.get("body", b"") for message in sent[1:]],
    )


def sim_config(life="agg/worker-0.0#1", **options):
    return WorkerConfig(
        life=life, kind="aggregated", control="", events="", state_dir="", model="m",
        options={"step": 0.0, **options},
    )  # fmt: skip


async def sim_app(**options):
    return await SimEngine(sim_config(**options)).start(lambda _text, _percent: None)


def ask(path, body=None, *, options=None, **how):
    """One request to a fresh simulator."""

    async def run():
        return await call(await sim_app(**(options or {})), path, body, **how)

    return asyncio.run(run())
