"""The worker's side of the request plane: one End or Fail each, whatever anybody does."""

import asyncio
import contextlib
import time

import pytest
import zmq

from orchestrator.wire import plane
from tests.plane import Client, body_of
from workers.runtime import bridge as bridge_module
from workers.runtime import outbox
from workers.runtime.bridge import Bridge

START = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}


def part(body=b"", *, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


def with_bridge(tmp_path, app, scenario, clients=1):
    """Run `scenario(bridge, *clients)` against an application."""

    async def run():
        context = zmq.Context()
        bridge = Bridge(context, f"ipc://{tmp_path}/p")
        await bridge.start(app, {})
        fleet = [Client(context, f"ipc://{tmp_path}/p") for _ in range(clients)]
        try:
            async with asyncio.timeout(10):
                return await scenario(bridge, *fleet)
        finally:
            bridge.cancel_all("the test is over")
            assert await bridge.wait_idle(5)
            bridge.close()
            for client in fleet:
                client.close()
            context.destroy(linger=0)

    return asyncio.run(run())


async def echo(scope, receive, send):
    message = await receive()
    await send(START)
    await send(part(scope["path"].encode() + b" " + message["body"], more=False))


async def never(_scope, receive, _send):
    await receive()
    message = await receive()
    assert message == {"type": "http.disconnect"}


def test_a_request_and_its_answer(tmp_path):
    async def scenario(bridge, client):
        items = await client.ask(7, "/x", b"hello")
        assert items == [
            plane.Head(7, 200, [(b"a", b"b")]),
            plane.Chunk(7, b"/x hello"),
            plane.End(7),
        ]
        assert (bridge.inflight, bridge.requests, client.messages) == (0, 1, 1)

    with_bridge(tmp_path, echo, scenario)


def test_what_comes_too_late_is_not_begun(tmp_path):
    async def scenario(bridge, client):
        for number, until in ((1, time.monotonic()), (2, time.monotonic() + 60)):
            client.items[number] = []
            client._ends[number] = asyncio.Event()
            client.say(plane.Open(number, "GET", "/x", b"", [], b"", until))
        text = "the request came too late for its KV cache"
        assert await client.end(1) == [plane.Fail(1, "late", text)]
        assert (await client.end(2))[-1] == plane.End(2)
        assert bridge.requests == 1

    with_bridge(tmp_path, echo, scenario)


def test_scope_is_what_asgi_says(tmp_path):
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)
        await echo(scope, receive, send)

    async def scenario(_bridge, client):
        client.items[1] = []
        client._ends[1] = asyncio.Event()
        client.say(plane.Open(1, "GET", "/v1/models", b"a=1", [(b"x-a", b"1")], b""))
        await client.end(1)

    with_bridge(tmp_path, app, scenario)
    assert seen["asgi"]["spec_version"] == "2.3"
    assert (seen["type"], seen["method"], seen["path"]) == ("http", "GET", "/v1/models")
    assert (seen["query_string"], seen["headers"]) == (b"a=1", [(b"x-a", b"1")])


def test_one_loop_pass_is_one_message(tmp_path):
    step = asyncio.Event()

    async def app(_scope, _receive, send):
        await send(START)
        await step.wait()
        await send(part(b"token"))
        await send(part(more=False))

    async def scenario(bridge, client):
        for number in range(50):
            client.open(number)
        await until(lambda: all(client.items.values()))
        before = client.messages
        step.set()
        await asyncio.gather(*(client.end(number) for number in range(50)))
        assert client.messages - before == 1

    with_bridge(tmp_path, app, scenario)


async def until(condition):
    """Let the loop turn until it is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def fails_first(_scope, _receive, _send):
    raise ValueError("no")


async def fails_later(_scope, _receive, send):
    await send(START)
    await send(part(b"half"))
    raise ValueError("no")


async def says_nothing(_scope, _receive, _send):
    return


async def says_half(_scope, _receive, send):
    await send(START)
    await send(part(b"half"))


async def says_body_first(_scope, _receive, send):
    await send(part(b"x"))


@pytest.mark.parametrize(
    ("app", "kinds", "text"),
    [
        (fails_first, [plane.Fail], "ValueError: no"),
        (fails_later, [plane.Head, plane.Chunk, plane.Fail], "ValueError: no"),
        (says_nothing, [plane.Fail], "without completing"),
        (says_half, [plane.Head, plane.Chunk, plane.Fail], "without completing"),
        (says_body_first, [plane.Fail], "can't follow"),
    ],
)
def test_a_broken_application_is_a_fail(tmp_path, app, kinds, text):
    async def scenario(_bridge, client):
        items = await client.ask(1)
        assert [type(item) for item in items] == kinds
        assert items[-1].code == "app-error"
        assert text in items[-1].text

    with_bridge(tmp_path, app, scenario)


def test_an_error_after_the_end_stays_here(tmp_path):
    async def app(scope, receive, send):
        await echo(scope, receive, send)
        raise ValueError("too late")

    async def scenario(bridge, client):
        assert isinstance((await client.ask(1))[-1], plane.End)
        await bridge.wait_idle()

    with_bridge(tmp_path, app, scenario)


def test_cancel_is_heard_in_receive(tmp_path):
    async def scenario(bridge, client):
        client.open(1)
        await until(lambda: bridge.inflight)
        client.cancel(1)
        assert await client.end(1) == [plane.Fail(1, "cancelled", "cancelled by the frontend")]

    with_bridge(tmp_path, never, scenario)


def test_cancel_is_heard_in_send(tmp_path):
    raised = []

    async def app(_scope, _receive, send):
        await send(START)
        try:
            while True:
                await send(part(b"x"))
                await asyncio.sleep(0)
        except OSError as error:
            raised.append(error)
            raise

    async def scenario(_bridge, client):
        client.open(1)
        await until(lambda: client.items[1])
        client.cancel(1)
        items = await client.end(1)
        assert items[-1].code == "cancelled"
        assert len(raised) == 1

    with_bridge(tmp_path, app, scenario)


@pytest.mark.parametrize("stubborn", [0, 2])
def test_an_application_that_does_not_end_is_ended(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(bridge_module, "CANCEL_GRACE_S", 0.01)

    async def app(_scope, _receive, _send):
        for _ in range(stubborn):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async def scenario(bridge, client):
        client.open(1)
        await until(lambda: bridge.inflight)
        client.cancel(1)
        assert (await client.end(1))[-1].code == "cancelled"

    with_bridge(tmp_path, app, scenario)


def test_a_cancel_that_comes_too_late_is_nothing(tmp_path):
    async def scenario(_bridge, client):
        await client.ask(1)
        client.cancel(1)
        client.cancel(99)
        assert isinstance((await client.ask(2))[-1], plane.End)

    with_bridge(tmp_path, echo, scenario)


def test_two_frontends_may_use_the_same_ids(tmp_path):
    async def scenario(_bridge, one, two):
        first, second = await asyncio.gather(one.ask(1, "/one"), two.ask(1, "/two"))
        assert (body_of(first), body_of(second)) == (b"/one ", b"/two ")

    with_bridge(tmp_path, echo, scenario, clients=2)


def test_a_vanished_frontend_frees_its_requests_alone(tmp_path):
    async def scenario(bridge, gone, stays):
        for number in range(20):
            gone.open(number)
        stays.open(1)
        await until(lambda: bridge.inflight == 21)
        gone.close()
        async with asyncio.timeout(5):
            while bridge.inflight != 1:  # noqa: ASYNC110
                await asyncio.sleep(0)
        stays.cancel(1)
        await stays.end(1)

    with_bridge(tmp_path, never, scenario, clients=2)


def test_a_frontend_that_comes_back_is_heard_at_once(tmp_path):
    async def scenario(bridge, other):
        for number in range(20):
            client = Client(bridge._context, bridge._endpoint, identity=b"frontend-0.0#1")
            assert isinstance((await client.ask(number))[-1], plane.End)
            client.close()
        assert isinstance((await other.ask(1))[-1], plane.End)

    with_bridge(tmp_path, echo, scenario)


def test_refusing_is_a_fail_that_may_go_elsewhere(tmp_path):
    async def scenario(bridge, client):
        bridge.refusing = "the worker is draining"
        assert await client.ask(1) == [plane.Fail(1, "draining", "the worker is draining")]

    with_bridge(tmp_path, echo, scenario)


def test_open_requests_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(bridge_module, "OPEN_MAX", 3)

    async def scenario(bridge, client):
        for number in range(3):
            client.open(number)
        items = await client.ask(3)
        assert items[0].code == "draining"
        assert "3 requests" in items[0].text
        assert bridge.inflight == 3

    with_bridge(tmp_path, never, scenario)


def test_nonsense_is_survived(tmp_path):
    async def scenario(_bridge, client):
        client.socket.send(b"\xc1 nonsense")
        client.socket.send_multipart([b"two", b"frames"])
        assert isinstance((await client.ask(1))[-1], plane.End)

    with_bridge(tmp_path, echo, scenario)


def test_a_slow_frontend_holds_its_own_streams_only(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "PENDING_BYTES_MAX", 1 << 16)
    monkeypatch.setattr(outbox, "BATCH_BYTES_MAX", 1 << 14)
    monkeypatch.setattr(bridge_module, "HWM_BATCHES", 2)
    count, size = 4000, 1000
    sent = []

    async def app(scope, receive, send):
        if scope["path"] == "/quick":
            await echo(scope, receive, send)
            return
        await send(START)
        for number in range(count):
            sent.append(number)
            await send(part(number.to_bytes(4, "big") * (size // 4)))
        await send(part(more=False))

    async def scenario(_bridge, slow, quick):
        slow.pause()
        slow.open(1, "/slow")
        await until(lambda: len(sent) > 50)
        # What the kernel and both pipes take is not ours to say, but it ends.
        while True:
            before = len(sent)
            await quick.ask(before, "/quick")
            await quick.ask(before + 100_000, "/quick")
            if len(sent) == before:
                break
        assert len(sent) < count
        slow.resume()
        body = body_of(await slow.end(1))
        assert body == b"".join(n.to_bytes(4, "big") * (size // 4) for n in range(count))

    with_bridge(tmp_path, app, scenario, clients=2)


def test_a_cancel_ends_a_held_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "PENDING_BYTES_MAX", 1 << 12)
    monkeypatch.setattr(bridge_module, "HWM_BATCHES", 1)
    sent = []

    async def app(_scope, _receive, send):
        await send(START)
        while True:
            sent.append(1)
            await send(part(b"x" * 100_000))

    async def scenario(bridge, client):
        client.pause()
        client.open(1)
        await until(lambda: bridge.inflight and sent)
        client.cancel(1)
        assert await bridge.wait_idle(5)

    with_bridge(tmp_path, app, scenario)


def test_close_answers_what_is_still_open(tmp_path):
    async def app(_scope, _receive, _send):
        await asyncio.sleep(3600)

    async def scenario(bridge, client):
        client.open(1)
        await until(lambda: bridge.inflight)
        bridge.cancel_all("the worker is stopping")
        bridge.close()
        assert await client.end(1) == [plane.Fail(1, "cancelled", "the worker is stopping")]
        for peer in bridge._peers.values():
            for exchange in peer.exchanges.values():
                exchange.task.cancel()

    with_bridge(tmp_path, app, scenario)
