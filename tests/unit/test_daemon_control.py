"""The control socket, over real ZeroMQ: workers, operators, strangers."""

import asyncio

import pytest
import zmq

from orchestrator.daemon import control as module
from orchestrator.daemon.control import Control
from orchestrator.wire import messages as m
from orchestrator.wire.ids import LifeId
from orchestrator.wire.sockets import make_socket
from tests.eventually import eventually

LIFE = "agg/worker-0.0#1"


class Room:
    """One control socket, what it hears, and peers that talk to it."""

    def __init__(self, folder) -> None:
        self.loop = asyncio.new_event_loop()
        self.context = zmq.Context()
        self.endpoint = f"ipc://{folder}/c"
        self.heard: list[tuple[str, object]] = []
        self.unreadable: list[str] = []
        self.control = Control(
            self.context,
            self.endpoint,
            lambda life, message: self.heard.append((str(life), message)),
            self.answer,
            lambda life, error: self.unreadable.append(f"{life}: {error}"),
        )
        self.gate: asyncio.Event | None = None
        self.call(self.control.start)

    async def answer(self, verb):
        if self.gate is not None:
            await self.gate.wait()
        if verb.name == "bug":
            raise RuntimeError("oh")
        return m.Reply(code=0, text=verb.name)

    def call(self, function, *args):
        async def inside():
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        return self.loop.run_until_complete(inside())

    def peer(self, name: str = ""):
        socket = make_socket(self.context, zmq.DEALER)
        if name:
            socket.routing_id = name.encode()
        socket.connect(self.endpoint)
        return socket

    def turn(self) -> None:
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def until(self, condition):
        """Turn the loop until it is so: everything is local, so it is soon."""

        def turned():
            self.turn()
            return condition()

        return eventually(turned, 5, every_s=0.001)

    def reply(self, socket):
        self.until(lambda: socket.poll(0))
        return m.decode_reply(socket.recv())

    def close(self) -> None:
        if self.gate is not None:
            self.call(self.gate.set)
        if not self.control._socket.closed:
            self.call(self.control.stop)
        self.context.destroy(linger=0)
        self.loop.close()


@pytest.fixture
def room(short_path):
    one = Room(short_path)
    yield one
    one.close()


def test_a_worker_is_known_by_its_socket_whatever_it_claims(room):
    worker = room.peer(LIFE)
    worker.send(m.encode(m.Ready("agg/other-0.0#9", ["m"])))
    room.until(lambda: room.heard)
    assert room.heard == [(LIFE, m.Ready("agg/other-0.0#9", ["m"]))]


def test_a_verb_is_answered(room):
    operator = room.peer()
    operator.send(m.encode(m.Verb("status")))
    assert room.reply(operator) == m.Reply(code=0, text="status")


def test_a_verb_with_a_bug_is_answered_and_stops_nothing(room):
    operator = room.peer()
    operator.send(m.encode(m.Verb("bug")))
    assert "RuntimeError: oh (a bug in dynorch)" in room.reply(operator).text
    operator.send(m.encode(m.Verb("status")))
    assert room.reply(operator).code == 0


@pytest.mark.parametrize(
    "frames", [[b""], [b"\xff\xfe"], [b"{}"], [b"a", b"b"], [b"\x81\xa4type\xa5hello"], [b""] * 9]
)
def test_a_strangers_bytes_are_refused(room, frames):
    stranger = room.peer()
    stranger.send_multipart(frames)
    reply = room.reply(stranger)
    assert reply.code == 1
    assert "can't be read" in reply.text
    assert room.control.malformed == 1
    assert room.heard == []


def test_a_workers_words_from_somebody_who_is_none_are_refused(room):
    stranger = room.peer("agg/worker-0")
    stranger.send(m.encode(m.Ready(LIFE, [])))
    assert "not from a worker" in room.reply(stranger).text
    assert room.heard == []


def test_a_worker_that_makes_no_sense_is_reported_ever_more_rarely(room):
    worker = room.peer(LIFE)
    for _ in range(9):
        worker.send(b"nonsense")
    worker.send(m.encode(m.Drained(LIFE)))
    room.until(lambda: room.heard)
    assert room.control.malformed == 9
    assert len(room.unreadable) == 4  # the 1st, 2nd, 4th and 8th
    assert room.unreadable[0].startswith(LIFE)
    assert not worker.poll(0)


def test_too_much_at_once_is_not_read(room):
    worker = room.peer(LIFE)
    worker.send(b"x" * (module.FRAME_BYTES_MAX + 1))
    other = room.peer("agg/worker-1.0#1")
    other.send(m.encode(m.Drained(LIFE)))
    room.until(lambda: room.heard)
    assert room.control.malformed == 0


def test_too_many_verbs_are_refused_not_queued(room):
    room.gate = asyncio.Event()
    operators = [room.peer() for _ in range(module.VERBS_MAX)]
    for operator in operators:
        operator.send(m.encode(m.Verb("status")))
    room.until(lambda: len(room.control._verbs) == module.VERBS_MAX)
    late = room.peer()
    late.send(m.encode(m.Verb("status")))
    assert "try again" in room.reply(late).text
    room.call(room.gate.set)
    assert [room.reply(operator).code for operator in operators] == [0] * module.VERBS_MAX


def test_an_order_waits_for_a_worker_that_reconnects(room):
    life = LifeId.parse(LIFE)
    room.call(room.control.order, life, m.Drain(5.0))
    room.call(room.control.order, life, m.Drain(9.0))
    worker = room.peer(LIFE)
    worker.send(m.encode(m.Drained(LIFE)))
    room.until(lambda: worker.poll(0))
    assert m.decode_at_worker(worker.recv()) == m.Drain(9.0)
    room.call(room.control.send, life, m.Greet())
    room.until(lambda: worker.poll(0))
    assert m.decode_at_worker(worker.recv()) == m.Greet()


def test_an_order_dies_with_its_life(room):
    life = LifeId.parse(LIFE)
    room.call(room.control.order, life, m.Drain(5.0))
    room.call(room.control.forget, life)
    worker = room.peer(LIFE)
    worker.send(m.encode(m.Drained(LIFE)))
    room.until(lambda: room.heard)
    room.call(room.control.send, life, m.Greet())
    room.until(lambda: worker.poll(0))
    assert m.decode_at_worker(worker.recv()) == m.Greet()


def test_kept_orders_are_bounded(room, monkeypatch):
    monkeypatch.setattr(module, "KEPT_MAX", 2)
    for number in range(5):
        room.call(room.control.order, LifeId.parse(f"agg/worker-{number}.0#1"), m.Drain(1.0))
    assert len(room.control._kept) == 2


def test_what_is_said_to_nobody_is_lost_quietly(room):
    room.call(room.control.send, LifeId.parse(LIFE), m.Ack(1))
    assert room.control._kept == {}


def test_a_paused_socket_reads_nothing_more_and_answers_what_it_has(room):
    room.gate = asyncio.Event()
    first, second = room.peer(), room.peer()
    first.send(m.encode(m.Verb("status")))
    room.until(lambda: room.control._verbs)
    room.call(room.control.pause)
    second.send(m.encode(m.Verb("status")))
    room.call(room.gate.set)
    assert room.reply(first).code == 0
    assert not second.poll(0)


def test_stop_waits_for_the_answers(room):
    room.gate = asyncio.Event()
    operator = room.peer()
    operator.send(m.encode(m.Verb("status")))
    room.until(lambda: room.control._verbs)

    async def stop():
        room.loop.call_soon(room.gate.set)
        await room.control.stop()

    room.call(stop)
    assert operator.poll(2000)
    assert m.decode_reply(operator.recv()).code == 0
