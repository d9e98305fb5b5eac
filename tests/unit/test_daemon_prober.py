"""The rounds of questions: one at a time, of the living only, and never more than are due."""

import asyncio

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core.probe import Probe
from orchestrator.daemon import asking
from orchestrator.daemon.unit import UnitSpec

CHECKED = """
name = "t"
start.settle = "1s"
[processes.p]
command = ["p"]
ready = { exec = ["check"], period = "2s", misses = 2 }
live = { exec = ["check"], period = "10s", misses = 2 }
[processes.after]
command = ["after"]
depends-on = ["p"]
"""
P = "t/p-0"


@pytest.fixture
def unit(stage):
    stage.up(CHECKED.replace("live", "# live"))
    unit = stage.unit(P)
    stage.born(unit)
    return unit


def make_ready(stage) -> None:
    stage.after(0.1)
    stage.answer()


def test_it_is_asked_until_it_answers_and_then_it_is_ready(stage, unit):
    for _ in range(20):
        stage.after(1.1)
        assert stage.answer("exited with code 1") == "t/p-0.0#1"
        assert stage.phase(P) == "starting"
        assert unit.heard[0].progress == "waits for check: exited with code 1"
    stage.after(1.1)
    assert stage.ordered() == [P]
    stage.answer()
    assert stage.phase(P) == "ready"
    assert unit.heard[0].progress == ""
    assert stage.ordered() == [P, "t/after-0"]


def test_there_is_one_question_or_one_timer_never_both(stage, unit):
    make_ready(stage)
    stage.born(stage.unit("t/after-0"))
    stage.after(1.1)
    for _ in range(5):
        assert (stage.questions, stage.timers()) == ([], 1)
        stage.after(1.1)
        assert len(stage.questions) == 1
        stage.answer()
        stage.after(0.9)
    stage.after(0.2)
    stage.after(4.0)  # the answer is slow: nobody asks again meanwhile
    stage.answer()


def test_misses_make_it_unready_for_others_too_and_kill_nobody(stage, unit):
    make_ready(stage)
    for _ in range(5):
        stage.after(2.1)
        stage.answer("exited with code 1")
    assert stage.phase(P) == "ready"
    assert unit.state.reason.sentence == "unready: check: exited with code 1"
    assert stage.ordered(a.Kill) == []
    after = stage.unit("t/after-0")
    stage.born(after)
    stage.post(after, e.MainExited, 1 << 8)
    stage.empty(after, 1 << 8)
    stage.after(2.0)
    assert stage.phase("t/after-0") == "waiting"
    assert "t/p-0 to be ready: unready: check" in str(after.state.reason)
    stage.answer()
    assert stage.phase("t/after-0") == "starting"


def test_the_answer_of_an_earlier_life_counts_for_nothing(stage, unit):
    stage.after(0.1)
    ((_, late),) = stage.questions
    stage.questions.clear()
    stage.post(unit, e.MainExited, 1 << 8)
    stage.empty(unit, 1 << 8)
    assert late.cancelled()
    stage.after(1.5)
    stage.born(unit)
    stage.after(0.1)
    assert [life for life, _ in stage.questions] == ["t/p-0.0#2"]
    assert stage.phase(P) == "starting"


def test_liveness_is_asked_once_ready_and_ends_in_a_restart(stage):
    stage.up(CHECKED.replace("ready =", "# ready ="))
    unit = stage.unit(P)
    stage.born(unit)
    assert stage.phase(P) == "starting"
    stage.after(1.1)
    assert stage.phase(P) == "ready"
    for _ in range(2):
        assert stage.questions == []
        stage.after(10.1)
        stage.answer("exited with code 7")
    assert stage.phase(P) == "stopping"
    assert stage.ordered(a.Kill) == [P]
    assert unit.state.reason.sentence == (
        "failed its liveness probe 2 times in a row: check: exited with code 7"
    )
    stage.empty(unit, 9)
    assert stage.phase(P) == "waiting"


def test_a_new_daemon_goes_on_asking_and_a_stop_ends_it(stage, unit):
    make_ready(stage)
    stage.prober.close()
    stage.after(5)
    assert stage.questions == []
    stage.call(stage.prober.watch_adopted)
    stage.after(2.1)
    assert len(stage.questions) == 1
    stage.call(stage.supervisor.request, unit, e.StopRequested)
    assert stage.questions[0][1].cancelled()


def test_a_changed_probe_holds_from_the_next_question_on(stage, unit):
    make_ready(stage)
    stage.after(2.1)
    spec = {name: getattr(unit.spec, name) for name in UnitSpec.__slots__}
    unit.spec = UnitSpec(**spec | {"ready": Probe(kind="exec", argv=("x",), period_s=30.0)})
    stage.answer()
    stage.after(29)
    assert stage.questions == []
    stage.after(2)
    assert len(stage.questions) == 1


# The ways of asking.


async def served(answer: bytes, *, hang: bool = False) -> str:
    async def serve(reader, writer):
        served.request = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not hang:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        return await asking.http(f"http://127.0.0.1:{port}/health?deep=1")
    finally:
        server.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.0 204 No Content\r\ncontent-length: 0\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", ""),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "answered 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "answered 302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "broke off"),
        (b"220 smtp ready\r\n\r\n", "its answer isn't HTTP"),
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (17 << 10), "its answer's head is too long"),
    ],
)
def test_what_a_get_says(answer, why):
    assert asyncio.run(served(answer)) == why
    assert served.request.startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:")


def test_a_server_that_keeps_the_connection_open_is_not_waited_for():
    assert asyncio.run(served(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", hang=True)) == ""


def test_nobody_there_is_said_in_two_words(free_tcp_port):
    assert asyncio.run(asking.http(f"http://127.0.0.1:{free_tcp_port}/")) == "connection refused"
    assert asyncio.run(asking.tcp(f"127.0.0.1:{free_tcp_port}")) == "connection refused"
    assert asyncio.run(asking.tcp(f"localhost:{free_tcp_port}")) == "connection refused"


@pytest.fixture
def free_tcp_port():
    async def find():
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        return port

    return asyncio.run(find())


def test_a_log_is_read_once_from_where_the_life_begins_and_across_rotation(tmp_path):
    path = tmp_path / "log"
    look = asking.LogLook(str(path), 7)
    assert not look.find("up")
    path.write_text("up? up\nbegins\nlistening on ")
    assert not look.find("up")
    assert not look.find(r"on \d+")
    with path.open("a") as file:
        file.write("90")
    assert look.find(r"on \d+")
    with path.open("a") as file:
        file.write("\nnearly ")
    path.rename(tmp_path / "log.1")
    with (tmp_path / "log.1").open("a") as file:
        file.write("there\n")
    path.write_text("new\n")
    assert look.find("^nearly there$")
    assert not look.find("there")
