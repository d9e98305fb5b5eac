"""The frontend as a process, between real clients and stub workers on the real request plane."""

import json
import signal
import socket

import openai
import pytest

from orchestrator.wire.routes import Blocked
from tests.e2e.frontend_stage import Stage, read_all, read_until
from tests.eventually import eventually

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path) as it:
        yield it


def seen(stage: Stage) -> dict:
    return stage.get("/stub/seen")[1]


def test_the_official_client(stage):
    stage.serve("a")
    client = stage.client()
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    answer = client.chat.completions.create(model="m", messages=HI)
    assert answer.choices[0].message.content == "a"
    stream = client.chat.completions.create(model="m", messages=HI, stream=True)
    assert [part.choices[0].delta.content for part in stream] == ["0 ", "1 ", "2 "]
    with pytest.raises(openai.NotFoundError, match="`x` does not exist"):
        client.chat.completions.create(model="x", messages=HI)


def test_answers_say_who_gave_them(stage):
    stage.serve("a")
    body = {"model": "m", "messages": HI}
    status, headers, _ = stage.call("POST", "/v1/chat/completions", body)
    assert status == 200
    assert headers["x-dynorch-worker"] == "t/worker-0.0#1"
    assert headers["x-dynorch-engine"] == "sim"
    assert headers["x-request-id"]
    assert "date" in headers
    assert stage.get("/v1/models")[1]["data"][0]["engine"] == "sim"


def test_requests_are_shared_out(stage):
    stage.serve("a", "b")
    assert [stage.chat()[1]["choices"][0]["message"]["content"] for _ in range(4)] in (
        ["a", "b", "a", "b"],
        ["b", "a", "b", "a"],
    )


def test_least_loaded_avoids_the_busy_one(stage):
    stage.serve("a", "b", routing="least-loaded")
    with stage.stream(hang_after=True) as busy:
        first = busy.recv(65536)
        assert b"200 OK" in first
        idle = {stage.chat()[1]["choices"][0]["message"]["content"] for _ in range(4)}
        assert len(idle) == 1


def test_models_are_routed_apart(stage):
    stage.worker("a", "m")
    stage.worker("b", "n", "also-n")
    stage.serve("a", "b")
    assert {stage.chat("n")[1]["choices"][0]["message"]["content"] for _ in range(4)} == {"b"}
    assert {card["id"] for card in stage.get("/v1/models")[1]["data"]} == {"m", "n", "also-n"}
    status, _, body = stage.call("POST", "/tokenize", {"prompt": "x"})
    assert status == 400
    assert b"say which" in body
    assert stage.call("POST", "/echo?model=m", {})[0] == 200


def test_what_only_we_may_set_never_reaches_a_worker(stage):
    stage.serve("a")
    body = b'{"model":"m","kv_transfer_params":{"do_remote_prefill":true},"x":1}'
    headers = {"X-Request-Id": "theirs", "X-data-parallel-rank": "1", "Connection": "close"}
    _, answer_headers, answer = stage.call("POST", "/echo", body, headers)
    echo = json.loads(answer)
    assert json.loads(echo["body"]) == {"model": "m", "x": 1}
    assert "x-data-parallel-rank" not in echo["headers"]
    assert "connection" not in echo["headers"]
    assert echo["headers"]["content-length"] == str(len(echo["body"]))
    assert echo["headers"]["x-request-id"] == answer_headers["x-request-id"] != "theirs"
    assert stage.metric("dynorch_frontend_stripped_requests_total") == 1


def test_the_engines_own_controls_are_denied(stage):
    stage.serve("a")
    for path in ("/sleep", "/%73leep", "/collective_rpc", "/v1/load_lora_adapter"):
        status, _, body = stage.call("POST", path, {})
        assert status == 403
        assert json.loads(body)["error"]["type"] == "PermissionDeniedError"


def test_our_own_paths(stage):
    stage.serve("a")
    assert stage.get("/live")[0] == 200
    assert stage.get("/health")[0] == 200
    assert stage.get("/ping")[0] == 200
    assert stage.call("HEAD", "/health")[2] == b""
    assert stage.call("OPTIONS", "/v1/models")[0] == 204
    assert stage.call("POST", "/health", {})[0] == 405
    assert stage.get("/v1/models/x")[0] == 404
    status, body = stage.get("/no/such/path")
    assert status == 404
    assert body["error"]["type"] == "NotFoundError"


def test_a_websocket_is_refused_in_words(stage):
    stage.serve("a")
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    status, _, body = stage.call("GET", "/v1/realtime", None, headers)
    assert status == 400
    assert b"WebSockets are not served" in body


def test_an_upgrade_that_may_be_ignored_is_ignored(stage):
    """Java's HTTP client offers h2c with every request, bodies included."""
    stage.serve("a")
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
    status, _, _ = stage.call(
        "POST", "/v1/chat/completions", {"model": "m", "messages": HI}, headers
    )
    assert status == 200


def test_a_body_over_the_bound(stage):
    stage.serve("a", body_max=1000)
    status, _, body = stage.call("POST", "/echo", b"x" * 2_000_000)
    assert status == 413
    assert json.loads(body)["error"]["code"] == 413
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as sock:
        head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        sock.sendall(head + b"3e9\r\n" + b"x" * 1001 + b"\r\n")
        assert b" 413 " in sock.recv(65536).partition(b"\r\n")[0]


def test_more_open_requests_than_may_be(stage):
    stage.serve("a", requests_max=2)
    with stage.stream(hang=True), stage.stream(hang=True):
        eventually(lambda: stage.metric("dynorch_frontend_inflight_requests") == 2)
        body = {"model": "m", "messages": HI}
        status, headers, answer = stage.call("POST", "/v1/chat/completions", body)
        assert status == 429
        assert headers["retry-after"] == "1"
        assert json.loads(answer)["error"]["code"] == 429
    eventually(lambda: stage.chat()[0] == 200)
    assert stage.metric("dynorch_frontend_rejected_requests_total") >= 1


def test_nobody_to_serve_it_now(stage):
    stage.worker("a")
    blocked = [Blocked("t/worker-0", "aggregated", ["m"], "waiting", "restarts in 7 s", 7.0)]
    stage.publish(blocked=blocked)
    stage.frontend()
    body = {"model": "m", "messages": HI}
    status, headers, answer = stage.call("POST", "/v1/chat/completions", body)
    assert (status, headers["retry-after"]) == (503, "7")
    error = json.loads(answer)["error"]
    assert error["type"] == "service_unavailable"
    assert "t/worker-0 is waiting: restarts in 7 s" in error["message"]
    assert stage.get("/health")[0] == 503
    assert stage.get("/live")[0] == 200
    assert stage.get("/v1/models")[1]["data"] == []
    stage.settled(stage.publish("a"))
    assert stage.chat()[0] == 200


def test_a_worker_in_the_table_that_is_not_there(stage):
    stage.worker("a")
    stage.kill("a")
    stage.publish("a")
    stage.frontend()
    status, body = stage.chat()
    assert status == 503
    assert "this frontend is not connected to it yet" in body["error"]["message"]
    assert stage.get("/v1/models")[1]["data"] == []


def test_killed_before_the_first_byte(stage):
    """Whoever gets the request first dies of it; the other answers, and lives."""
    stage.worker("a")
    stage.worker("b")
    stage.serve("a", "b", retries=1)
    for _ in range(2):
        stage.chat()
    with stage.stream(hang=True) as one, stage.stream(hang=True) as other:
        eventually(lambda: stage.metric("dynorch_frontend_inflight_requests") == 2)
        stage.kill("a")
        eventually(lambda: stage.metric('dynorch_frontend_retries_total{reason="lost"}') == 1)
        assert one
        assert other
    assert stage.chat()[1]["choices"][0]["message"]["content"] == "b"


def test_of_a_hundred_requests_during_a_kill_none_fails(stage):
    stage.serve("a", "b")
    client = stage.client()
    for number in range(100):
        if number == 30:
            stage.workers["a"].send_signal(signal.SIGKILL)
        answer = client.chat.completions.create(model="m", messages=HI)
        assert answer.choices[0].message.content in {"a", "b"}


def test_a_request_that_kills_does_not_kill_all(stage):
    stage.serve("a", "b", "c", retries=1)
    status, body = stage.chat(die=True)
    assert status == 503
    assert "retries are used up" in body["error"]["message"]
    assert stage.chat()[0] == 200


def test_killed_after_the_first_byte(stage):
    stage.serve("a", "b")
    stream = stage.client().chat.completions.create(
        model="m", messages=HI, stream=True, extra_body={"stub": {"hang_after": True}}
    )
    parts = iter(stream)
    assert next(parts).choices[0].delta.content == "0 "
    with stage.stream(hang_after=True) as sock:
        begun = sock.recv(65536)
        stage.kill("a")
        stage.kill("b")
        with pytest.raises(openai.APIError, match="could not be completed"):
            next(parts)
        whole = begun + read_all(sock)
        assert whole.count(b"data: {") == 2
        assert whole.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    broken = 'dynorch_frontend_broken_answers_total{reason="lost"}'
    assert stage.metric(broken) == 2


def test_half_a_plain_answer_is_no_answer(stage):
    stage.serve("a")
    with stage.stream(half=True) as sock:
        read_until(sock, b'{"half')
        stage.kill("a")
        # The connection ends 94 bytes short of its content-length: no client takes that for all.
        assert sock.recv(65536) == b""
    assert "Traceback" not in stage.log()
    assert "without completing" not in stage.log()


def test_what_is_not_http(stage):
    stage.serve("a")
    with socket.create_connection(("127.0.0.1", stage.port), timeout=10) as sock:
        sock.sendall(b"NONSENSE\r\n\r\n")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "BadRequestError"


def test_a_dead_engine_is_not_the_clients_problem(stage):
    stage.serve("a", "b")
    for _ in range(4):
        assert stage.chat(engine_dead="a")[1]["choices"][0]["message"]["content"] == "b"
    assert stage.metric('dynorch_frontend_retries_total{reason="engine_dead"}') >= 1


def test_a_dead_engine_with_no_other_speaks_for_itself(stage):
    stage.serve("a", hold=0)
    status, body = stage.chat(engine_dead="a")
    assert status == 500
    assert "EngineCore" in body["error"]["message"]


def test_an_applications_failure_is_not_retried(stage):
    stage.serve("a", "b")
    status, body = stage.chat(**{"raise": True})
    assert status == 500
    assert "told to raise" in body["error"]["message"]
    assert stage.metric('dynorch_frontend_retries_total{reason="app_error"}') == 0


def test_a_draining_worker_finishes_what_it_has(stage):
    stage.serve("a", "b")
    with stage.stream(gate="after", tokens=4) as sock:
        first = sock.recv(65536)
        holder = "a" if b"t/worker-0.0#1" in first else "b"
        other = "b" if holder == "a" else "a"
        stage.settled(stage.publish(other))
        assert {stage.chat()[1]["choices"][0]["message"]["content"] for _ in range(3)} == {other}
        stage.settled(stage.publish(holder))
        stage.call("POST", "/stub/open-gate")
        assert read_all(sock).count(b"data: {") + first.count(b"data: {") == 4


def test_a_worker_that_says_it_drains_is_passed_by(stage):
    stage.serve("a", "b")
    stage.call("POST", "/stub/drain")
    assert {stage.chat()[0] for _ in range(4)} == {200}
    assert stage.metric('dynorch_frontend_retries_total{reason="draining"}') >= 1


@pytest.mark.parametrize("stub", [{"hang": True}, {"hang_after": True}])
def test_a_client_that_leaves_is_cancelled_at_once_and_counted_once(stage, stub):
    stage.serve("a")
    sock = stage.stream(**stub)
    eventually(lambda: seen(stage)["open"] == 1)
    sock.close()
    eventually(lambda: seen(stage) == {"requests": 1, "cancelled": 1, "open": 0}, 1)
    eventually(lambda: stage.metric("dynorch_frontend_disconnected_clients_total") == 1)
    code = 'dynorch_frontend_requests_total{code="499",model="m"}'
    assert stage.metric(code) == 1


def test_the_official_client_disconnects_in_mid_stream(stage):
    stage.serve("a")
    stream = stage.client().chat.completions.create(
        model="m", messages=HI, stream=True, extra_body={"stub": {"hang_after": True}}
    )
    assert next(iter(stream)).choices[0].delta.content == "0 "
    stream.close()
    eventually(lambda: seen(stage)["cancelled"] == 1)


def test_a_slow_reader_is_cut_and_the_worker_spared(stage):
    stage.serve("a", stream_buffer_max=200_000)
    with stage.stream(tokens=100_000, bytes=1000) as sock:
        eventually(lambda: seen(stage)["cancelled"] == 1, 20)
        assert b"[DONE]" not in read_all(sock)
    broken = 'dynorch_frontend_broken_answers_total{reason="slow_reader"}'
    eventually(lambda: stage.metric(broken) == 1)
    assert stage.metric("dynorch_frontend_disconnected_clients_total") == 0
    assert stage.chat()[0] == 200


def test_a_long_stream_to_a_reader_that_reads(stage):
    stage.serve("a", stream_buffer_max=200_000)
    with stage.stream(tokens=20_000, bytes=200) as sock:
        assert read_all(sock).count(b"data: {") == 20_000


def test_a_request_over_its_time(stage):
    stage.serve("a", request_timeout=0.3)
    status, body = stage.chat(hang=True)
    assert (status, body["error"]["type"]) == (504, "TimeoutError")
    with stage.stream(hang_after=True) as sock:
        assert b'"code":504' in read_all(sock)
    eventually(lambda: seen(stage)["open"] == 0)
