"""A real worker process under a fake daemon: words in order, beats, drain, and every way to end."""

import asyncio
import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.wire import config as wire_config
from orchestrator.wire import messages, plane
from tests.eventually import eventually
from workers.runtime.serve import serve
from workers.sim.engine import SimEngine
from workers.sim.main import main

SLOW = json.dumps({"prompt": "a", "max_tokens": 4000, "stream": True}).encode()
SHORT = json.dumps({"prompt": "a", "max_tokens": 3}).encode()


def blocking_start(blob):
    """An engine that blocks the loop while it starts, as vLLM's does."""
    config = wire_config.decode(blob)

    class Blocking(SimEngine):
        async def start(self, report):
            report("blocking", None)
            threading.Event().wait(config.options.pop("block"))
            return await super().start(report)

    return serve(config, Blocking(config))


def test_words_come_in_order(start, daemon):
    worker = start(options={"startup": 0.1})
    ready = daemon.wait_for(messages.Ready)
    assert ready.models == ["m"]
    beat = daemon.wait_for(messages.Beat, lambda beat: beat.ready)
    assert (beat.requests, beat.tokens, beat.inflight) == (0, 0, 0)
    hello = daemon.heard[0]
    assert isinstance(hello, messages.Hello)
    assert (hello.pid, hello.engine, hello.ready) == (worker.pid, "sim", False)
    assert (hello.endpoint, hello.protocol) == (worker.config.plane, messages.PROTOCOL)
    before = daemon.heard[: daemon.heard.index(ready)]
    assert {type(m) for m in before} == {messages.Hello, messages.Progress, messages.Beat}
    assert not any(m.ready for m in before if isinstance(m, messages.Beat))
    beats = [m.seq for m in daemon.heard if isinstance(m, messages.Beat)]
    assert beats == list(range(beats[0], beats[0] + len(beats)))


def test_beats_go_on_while_the_loop_is_blocked(start, daemon):
    start(blocking_start, options={"block": 1.0})
    daemon.wait_for(messages.Beat, lambda beat: beat.loop_age_s > 0.5)
    daemon.wait_for(messages.Ready)
    daemon.forget()
    daemon.wait_for(messages.Beat, lambda beat: beat.loop_age_s < 0.1)


def test_a_new_daemon_learns_who_lives(start, daemon, frontend):
    worker = start(options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, SLOW)
    eventually(lambda: len(client.of(1)) > 3)
    daemon.die()
    seen = len(client.of(1))
    eventually(lambda: len(client.of(1)) > seen + 20)
    daemon.heard.clear()
    daemon.bind()
    first = daemon.wait_for(messages.Beat)
    assert first.ready
    assert first.inflight == 1
    daemon.tell(messages.Greet())
    hello = daemon.wait_for(messages.Hello)
    assert (hello.ready, hello.models, hello.pid) == (True, ["m"], worker.pid)


def test_drain_finishes_what_runs_and_refuses_what_comes(start, daemon, frontend):
    worker = start(options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, json.dumps({"prompt": "a", "max_tokens": 60, "stream": True}).encode())
    eventually(lambda: client.of(1))
    daemon.tell(messages.Drain(30.0))
    refused = eventually(lambda: refusal(client))
    assert (refused.code, refused.text) == ("draining", "the worker is draining")
    assert not any(isinstance(m, messages.Drained) for m in daemon.heard)
    items = client.end(1)
    assert isinstance(items[-1], plane.End)
    assert items[-2].data.endswith(b"data: [DONE]\n\n")
    daemon.wait_for(messages.Drained)
    worker.term()
    assert worker.wait() == 0


def refusal(client):
    """Ask until a request is refused: the drain reaches the loop a moment after it was sent."""
    number = len(client.items) + 100
    client.open(number, SHORT)
    last = client.end(number)[-1]
    return last if isinstance(last, plane.Fail) else None


def test_a_drain_has_a_deadline(start, daemon, frontend):
    worker = start(options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, SLOW)
    eventually(lambda: client.of(1))
    daemon.tell(messages.Drain(0.1))
    assert client.end(1)[-1] == plane.Fail(1, "cancelled", "the drain's deadline has passed")
    daemon.wait_for(messages.Drained)


def kept(blob):
    """An engine of whose KV cache something is fetched when a signal says so."""
    config = wire_config.decode(blob)

    class Prefill(SimEngine):
        async def wait_fetched(self):
            fetched = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, fetched.set)
            await fetched.wait()

    return serve(config, Prefill(config))


def test_a_drain_waits_until_the_kv_cache_was_fetched(start, daemon):
    worker = start(kept)
    daemon.wait_for(messages.Ready)
    daemon.tell(messages.Drain(30.0))
    daemon.forget()
    # A beat that was made after the drain had begun.
    beats = [daemon.wait_for(messages.Beat).seq]
    daemon.wait_for(messages.Beat, lambda beat: beat.seq > beats[0] + 2)
    assert not daemon.said(messages.Drained)
    os.kill(worker.pid, signal.SIGUSR1)
    daemon.wait_for(messages.Drained)


def test_what_nobody_fetches_is_given_up_at_the_drains_deadline(start, daemon):
    start(kept)
    daemon.wait_for(messages.Ready)
    daemon.tell(messages.Drain(0.1))
    daemon.wait_for(messages.Drained)


def on_asyncio(blob):
    """The same worker on asyncio's own loop."""
    config = wire_config.decode(blob)
    return serve(config, SimEngine(config), asyncio.new_event_loop)


@pytest.mark.parametrize("entry", [main, on_asyncio])
def test_sigterm_ends_requests_with_an_answer(start, daemon, frontend, entry):
    worker = start(entry, options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    clients = [frontend(worker), frontend(worker)]
    for client in clients:
        client.open(1, SLOW)
        eventually(lambda client=client: client.of(1))
    worker.term()
    for client in clients:
        assert client.end(1)[-1] == plane.Fail(1, "cancelled", "the worker is stopping")
    assert worker.wait() == 0
    assert worker.said() == ""
    assert not Path(worker.config.plane.removeprefix("ipc://")).exists()
    daemon.pump()
    assert not any(isinstance(m, messages.Bye) for m in daemon.heard)


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        (main, {"startup": 3600.0}),
        (main, {"faults": [{"fault": "hang"}]}),
        (blocking_start, {"block": 3600.0}),
    ],
    ids=["asleep", "hung", "blocked"],
)
def test_sigterm_during_the_start(start, daemon, entry, options):
    worker = start(entry, options=options)
    daemon.wait_for(messages.Beat)
    if entry is blocking_start:
        daemon.wait_for(messages.Progress)
    began = time.monotonic()
    worker.term()
    assert worker.wait() == 0
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("entry", [main, on_asyncio])
def test_sigterm_wakes_an_idle_worker(start, daemon, entry):
    worker = start(entry, beat_period_s=3600.0)
    daemon.wait_for(messages.Ready)
    worker.term()
    assert worker.wait(within_s=5) == 0


def forking_start(blob):
    """An engine that forks a child, as vLLM does, and ends it by SIGTERM."""
    config = wire_config.decode(blob)

    class Forking(SimEngine):
        async def start(self, report):
            reads, writes = os.pipe()
            child = os.fork()
            if not child:
                # Python forgets signals that come while it forks: say when that is over.
                os.write(writes, b"x")
                while True:
                    select.select([], [], [], 0.05)
            os.read(reads, 1)
            os.kill(child, signal.SIGTERM)
            status = os.waitpid(child, 0)[1]  # noqa: ASYNC222 blocking is what is tested
            sys.stderr.write(f"child: {os.waitstatus_to_exitcode(status)}\n")
            return await super().start(report)

    return serve(config, Forking(config))


def test_sigterm_ends_forked_children_as_usual(start, daemon):
    worker = start(forking_start)
    daemon.wait_for(messages.Ready)
    assert worker.said() == "child: -15\n"


def test_cancel_frees_the_request(start, daemon, frontend):
    worker = start(options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, SLOW)
    eventually(lambda: client.of(1))
    daemon.wait_for(messages.Beat, lambda beat: beat.inflight == 1)
    client.cancel(1)
    assert client.end(1)[-1].code == "cancelled"
    daemon.forget()
    tokens = daemon.wait_for(messages.Beat, lambda beat: beat.inflight == 0).tokens
    daemon.forget()
    assert daemon.wait_for(messages.Beat).tokens == tokens


def test_a_vanished_frontend_frees_its_requests(start, daemon, frontend):
    worker = start(options={"step": 0.01})
    daemon.wait_for(messages.Ready)
    gone, stays = frontend(worker), frontend(worker)
    # Not streaming: there is nothing to send to it, so its absence must be noticed otherwise.
    gone.open(1, json.dumps({"prompt": "a", "max_tokens": 4000}).encode())
    stays.open(1, SLOW)
    daemon.wait_for(messages.Beat, lambda beat: beat.inflight == 2)
    gone.close()
    daemon.forget()
    daemon.wait_for(messages.Beat, lambda beat: beat.inflight == 1)
    seen = len(stays.of(1))
    eventually(lambda: len(stays.of(1)) > seen + 5)


@pytest.mark.parametrize(
    ("options", "status", "code", "text"),
    [
        ({"stpe": 1}, 64, "config", "stpe"),
        (
            {"faults": [{"fault": "engine-death", "line": "bad weights"}]},
            70,
            "start-crash",
            "bad w",
        ),
    ],
)
def test_a_start_that_fails_says_so(start, daemon, options, status, code, text):
    worker = start(options=options)
    bye = daemon.wait_for(messages.Bye)
    assert (worker.wait(), bye.code) == (status, code)
    assert text in bye.text
    assert worker.said().splitlines()[-1] == f"dynorch: agg/worker-0.0#1: {bye.text}"


def test_a_start_that_raises_shows_its_traceback(start, daemon):
    def entry(blob):
        config = wire_config.decode(blob)

        class Broken(SimEngine):
            async def start(self, report):
                raise RuntimeError("CUDA out of memory")

        return serve(config, Broken(config), asyncio.new_event_loop)

    worker = start(entry)
    assert worker.wait() == 70
    assert daemon.wait_for(messages.Bye).text == "RuntimeError: CUDA out of memory"
    assert "Traceback" in worker.said()


def test_an_engine_that_dies(start, daemon, frontend):
    fault = {"fault": "engine-death", "after-tokens": 20, "line": "EngineCore died"}
    worker = start(options={"step": 0.01, "faults": [fault]})
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, SLOW)
    items = client.end(1)
    assert b'"message":"EngineCore died"' in items[-2].data
    bye = daemon.wait_for(messages.Bye)
    assert (bye.code, bye.text) == ("engine-died", "EngineCore died")
    assert worker.wait() == 71


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"fault": "crash"}, 1),
        ({"fault": "crash", "signal": 9}, -9),
        ({"fault": "exit-0"}, 0),
        ({"fault": "crash", "after-requests": 2, "line": "Segmentation fault"}, 1),
        ({"fault": "exit-0", "after-tokens": 2}, 0),
    ],
    ids=str,
)
def test_crashes(start, daemon, frontend, fault, status):
    worker = start(options={"step": 0.0, "faults": [fault]})
    if len(fault) > 1 and "signal" not in fault:
        daemon.wait_for(messages.Ready)
        client = frontend(worker)
        client.open(1, SHORT)
        client.open(2, SHORT)
    assert worker.wait() == status
    assert fault.get("line", "") in worker.said()


def test_a_hung_loop_is_told_by_the_beats(start, daemon, frontend):
    worker = start(options={"faults": [{"fault": "hang", "after-requests": 1}]})
    daemon.wait_for(messages.Ready)
    frontend(worker).open(1, SHORT)
    beat = daemon.wait_for(messages.Beat, lambda beat: beat.loop_age_s > 1.1)
    assert "threading.py" in beat.loop_at


def test_a_hung_engine_makes_no_progress(start, daemon, frontend):
    worker = start(options={"faults": [{"fault": "engine-hang", "after-tokens": 10}]})
    daemon.wait_for(messages.Ready)
    frontend(worker).open(1, SLOW)
    daemon.wait_for(messages.Beat, lambda beat: beat.tokens == 10)
    daemon.forget()
    beat = daemon.wait_for(messages.Beat, lambda beat: beat.seq > 20)
    assert (beat.tokens, beat.inflight, beat.ready) == (10, 1, True)


def test_term_can_be_ignored(start, daemon):
    worker = start(options={"faults": [{"fault": "ignore-term"}]})
    daemon.wait_for(messages.Ready)
    worker.term()
    daemon.forget()
    daemon.wait_for(messages.Beat, lambda beat: beat.ready)
    assert not worker.exited()


@pytest.mark.parametrize("kind", ["leak-child", "leak-daemon"])
def test_children_are_left_behind(start, daemon, kind):
    mark = f"DYNORCH_LEAK_{os.getpid()}_{kind[5:]}"

    def entry(blob):
        os.environ[mark] = "1"
        return main(blob)

    worker = start(entry, options={"faults": [{"fault": kind}]})
    daemon.wait_for(messages.Ready)
    worker.term()
    assert worker.wait() == 0
    [left] = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if carries(entry, mark)]
    session = os.getsid(left)
    os.kill(left, signal.SIGKILL)
    assert (session == worker.pid) == (kind == "leak-child")


def carries(entry, mark):
    try:
        return mark.encode() in (entry / "environ").read_bytes()
    except OSError:
        return False
