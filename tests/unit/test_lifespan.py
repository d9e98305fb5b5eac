"""An application's own start and stop, and the canary's judgement."""

import asyncio

import pytest
import zmq

from tests.unit.test_bridge import START, part
from workers.runtime import canary
from workers.runtime.bridge import Bridge
from workers.runtime.engine import Canary, EngineStartError
from workers.runtime.lifespan import Lifespan


def drive(app):
    async def run():
        lifespan = Lifespan(app)
        await lifespan.start()
        await lifespan.stop(0.05)
        return lifespan.state

    return asyncio.run(run())


def test_an_application_that_wants_it():
    seen = []

    async def app(scope, receive, send):
        for kind in ("startup", "shutdown"):
            seen.append((await receive())["type"])
            scope["state"]["db"] = 1
            await send({"type": f"lifespan.{kind}.complete"})

    assert drive(app) == {"db": 1}
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_one_that_raises_or_returns_does_not():
    async def raises(scope, receive, send):
        raise AssertionError(scope["type"])

    async def returns(scope, receive, send):
        return

    assert drive(raises) == drive(returns) == {}


def test_one_that_fails():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no template"})

    with pytest.raises(EngineStartError, match="no template"):
        drive(app)


def test_one_that_never_stops_is_cancelled():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await asyncio.sleep(3600)

    drive(app)


def prove(tmp_path, *bodies):
    """Run the canary against an application that gives one (status, body) after the other."""
    left = list(bodies)

    async def app(scope, receive, send):
        assert dict(scope["headers"])[b"x-dynorch-canary"] == b"1"
        status, body = left.pop(0)
        await send({**START, "status": status})
        await send(part(body, more=False))

    async def run():
        context = zmq.Context()
        bridge = Bridge(context, f"ipc://{tmp_path}/p")
        await bridge.start(app, {})
        try:
            await canary.prove(context, f"ipc://{tmp_path}/p", Canary("/v1/completions", b"{}"))
        finally:
            bridge.close()
            context.destroy(linger=0)

    asyncio.run(run())
    return len(left)


GOOD = (200, b'{"choices":[{"finish_reason":"length"}]}')
ABORTED = (200, b'{"choices":[{"finish_reason":"abort"}]}')


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(canary, "RETRY_S", 0.001)
    monkeypatch.setattr(canary, "TRIES_MAX", 3)


def test_canary_is_tried_until_it_sings(tmp_path):
    assert prove(tmp_path, (503, b"busy"), ABORTED, GOOD) == 0


@pytest.mark.parametrize("body", [b'{"data":[]}', b""])
def test_an_answer_without_choices_will_do(tmp_path, body):
    assert prove(tmp_path, (200, body)) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, b"boom"), "POST /v1/completions, was answered 500: boom"),
        (ABORTED, "ended with 'abort'"),
        ((200, b"<html>"), "what isn't a completion: <html>"),
    ],
)
def test_canary_gives_up_and_says_why(tmp_path, answer, said):
    with pytest.raises(EngineStartError, match=said):
        prove(tmp_path, answer, answer, answer)
