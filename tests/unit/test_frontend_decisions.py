"""The frontend's pure decisions: picks, retries, what a table says, error shapes, settings."""

import json
from types import SimpleNamespace

import pytest

from orchestrator.wire.routes import Blocked, Route, Routes
from workers.frontend import options, ports, problems, retries, table
from workers.frontend.picks import Turns, least_loaded, round_robin


def loads(*inflight: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(inflight=count, index=i) for i, count in enumerate(inflight)]


def test_round_robin_takes_turns():
    turns, ones = Turns(), loads(0, 9, 0)
    assert sorted(round_robin(ones, turns)[0].index for _ in range(3)) == [0, 1, 2]
    assert round_robin(ones[:1], turns) == (ones[0], "the only one")


def test_least_loaded_prefers_the_idle_and_rotates_among_equals():
    turns = Turns()
    ones = loads(2, 1, 1)
    picked = [least_loaded(ones, turns) for _ in range(4)]
    assert {one.index for one, _ in picked} == {1, 2}
    assert {reason for _, reason in picked} == {"its turn among the least loaded"}
    assert least_loaded(loads(2, 0, 1), turns)[1] == "fewest in flight"


def test_least_loaded_spreads_a_burst():
    turns, ones = Turns(), loads(0, 0, 0, 0)
    for _ in range(8):
        least_loaded(ones, turns)[0].inflight += 1
    assert [one.inflight for one in ones] == [2, 2, 2, 2]


def test_a_dead_engine_is_known_by_what_it_answers():
    dead = b'{"error":{"message":"EngineCore encountered an issue. See..."}}'
    assert retries.engine_died(500, dead)
    assert retries.engine_died(200, b'data: {"error": {"message":"EngineDeadError"}}\n\n')
    assert not retries.engine_died(500, b'{"error":{"message":"Internal server error"}}')
    assert not retries.engine_died(200, b'data: {"text":"EngineCore encountered an issue"}\n\n')


ROUTES = Routes(
    3,
    "t",
    "sim",
    [Route("t/a-0.0#1", "a", "aggregated", "ipc://x", ["m"])],
    [
        Blocked("t/a-1", "aggregated", ["m"], "waiting", "restarts in 4 s", 4.0),
        Blocked("t/b-0", "aggregated", ["n"], "failed", "out of memory", 30.0),
        Blocked("t/p-0", "prefill", ["only-prefill"], "starting", "loading", 1.0),
    ],
)


def test_known_models_are_those_that_can_be_asked_for():
    assert table.known_models(ROUTES, ["adapter"]) == ["adapter", "m", "n"]


def test_choose():
    assert table.choose("n", ["m", "n"]) == "n"
    assert table.choose(None, ["m"]) == "m"
    unknown = table.choose("x", ["m", "n"])
    assert (unknown.status, unknown.param) == (404, "model")
    assert "`x` does not exist" in unknown.message
    assert "`m`, `n`" in unknown.message
    assert table.choose(None, ["m", "n"]).status == 400
    assert table.choose(None, []).status == 503


def test_a_503_says_why_and_when():
    problem = table.cannot(
        "m", ROUTES.blocked, [table.Note("t/a-0.0#1", "aggregated", ["m"], "is mute")]
    )
    assert (problem.status, problem.type) == (503, "service_unavailable")
    assert "t/a-1 is waiting: restarts in 4 s" in problem.message
    assert "t/a-0.0#1: is mute" in problem.message
    assert "out of memory" not in problem.message
    assert (b"retry-after", b"4") in problems.headers(problem)


def test_a_503_stays_readable_with_many_reasons():
    many = [Blocked(f"t/a-{i}", "aggregated", ["m"], "failed", "x", 1.0) for i in range(50)]
    assert "and 46 more" in table.cannot("m", many, []).message


def test_health():
    status, body = table.health(ROUTES, {"m": 1, "n": 0}, [], draining=False)
    assert status == 503
    assert body["models"]["n"] == {"routable": 0, "reasons": ["t/b-0 is failed: out of memory"]}
    assert body["roles"]["a"] == {"kind": "aggregated", "routable": 1, "blocked": 1}
    assert table.health(ROUTES, {"m": 1}, [], draining=False)[0] == 200
    assert table.health(ROUTES, {"m": 1}, [], draining=True)[0] == 503
    assert table.health(ROUTES, {}, [], draining=False)[0] == 503
    assert table.health(None, {}, [], draining=False)[0] == 503


def test_errors_have_the_shape_that_clients_know():
    error = json.loads(problems.body(problems.not_found("gone", "model")))["error"]
    assert error == {"message": "gone", "type": "NotFoundError", "param": "model", "code": 404}


def test_an_error_event_ends_the_stream_in_each_dialect():
    problem = problems.unavailable("lost")
    chat = problems.event(problem, "/v1/chat/completions")
    assert chat.startswith(b'data: {"error":')
    assert chat.endswith(b"\n\ndata: [DONE]\n\n")
    for path in ("/v1/messages", "/v1/responses"):
        event = problems.event(problem, path)
        assert event.startswith(b"event: error\ndata: ")
        assert json.loads(event.partition(b"data: ")[2])["type"] == "error"


def test_settings():
    loaded = options.load({"port": 1, "request-timeout": 5, "stream-buffer-max": 9})
    assert (loaded.port, loaded.request_timeout_s, loaded.stream_buffer_max) == (1, 5.0, 9)
    assert options.load({}).routing == "round-robin"


@pytest.mark.parametrize(
    "bad", [{"prot": 1}, {"routing": "kv"}, {"port": 70000}, {"body-max": 0}, {"retries": -1}]
)
def test_wrong_settings_are_explained(bad):
    with pytest.raises(options.OptionsError, match="the keys are host, port, routing"):
        options.load(bad)


def test_listeners_are_read_from_the_kernels_table():
    text = (
        "  sl  local_address rem_address   st\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 77 1 0\n"
        "   1: 0100007F:1F40 0100007F:9999 01 00000000:00000000 00:00000000 00000000  0 0 78 1 0\n"
        "   2: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 79 1 0\n"
    )  # fmt: skip
    assert ports.listeners(text, 8000) == {77}
