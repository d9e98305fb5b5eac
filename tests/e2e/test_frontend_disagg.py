"""Two stages behind one request: the frontend between real clients and stub prefill and decode
workers, and every way in which one of the two goes wrong before the client has seen a byte."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.wire.routes import Blocked
from tests.e2e.frontend_stage import Stage, read_all, read_until
from tests.eventually import eventually

TICKETS = 'dynorch_frontend_tickets_total{fate="%s"}'
DEGRADED = 'dynorch_frontend_degraded_requests_total{reason="%s"}'


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path) as it:
        yield it


def ask(stage: Stage, path: str = "/v1/chat/completions", **fields: object):
    """Ask for an answer; its status, headers and body."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    status, headers, answer = stage.call("POST", path, body)
    return status, headers, json.loads(answer)


def text(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def returning(kind: str) -> Blocked:
    reason = "restarting as asked"
    return Blocked(f"t/{kind}-9", kind, ["m"], "stopping", reason, 1.0, "asked", returns=True)


def test_prefill_reads_and_decode_answers(stage):
    stage.pair()
    status, headers, answer = ask(stage, max_tokens=7, temperature=0)
    assert (status, text(answer)) == (200, "d after p")
    assert headers["x-dynorch-worker"] == "t/decode-1.0#1"
    assert headers["x-dynorch-prefill"] == "t/prefill-0.0#1"
    assert "x-dynorch-degraded" not in headers
    (first,) = (json.loads(one["body"]) for one in stage.received("p"))
    (second,) = (json.loads(one["body"]) for one in stage.received("d"))
    assert (first["max_tokens"], first["max_completion_tokens"], first["stream"]) == (1, 1, False)
    assert first["kv_transfer_params"]["do_remote_decode"]
    assert second.pop("kv_transfer_params") == {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]],
        "remote_engine_id": "p", "remote_host": "127.0.0.1", "remote_port": 5600, "tp_size": 1,
        "remote_request_id": "r1",
    }  # fmt: skip
    assert second == {
        "model": "m", "messages": first["messages"], "max_tokens": 7, "temperature": 0,
    }  # fmt: skip
    ids = {one["headers"]["x-request-id"] for name in "pd" for one in stage.received(name)}
    assert ids == {headers["x-request-id"]}
    assert stage.metric(TICKETS % "issued") == stage.metric(TICKETS % "used") == 1
    assert stage.metric('dynorch_frontend_prefill_duration_seconds_count{model="m"}') == 1
    assert stage.get("/health") == (200, stage.get("/health")[1] | {"status": "healthy"})
    assert [card["id"] for card in stage.get("/v1/models")[1]["data"]] == ["m"]


def test_streams(stage):
    stage.pair()
    client = stage.client()
    stream = client.chat.completions.create(model="m", messages=[], stream=True)
    assert [part.choices[0].delta.content for part in stream] == ["0 ", "1 ", "2 "]
    assert len(stage.received("p")) == 1


def test_each_stage_takes_the_least_loaded(stage):
    stage.pair("p q", "d e", routing="least-loaded")
    with stage.stream(hang_after=True) as busy:
        assert b"200 OK" in busy.recv(65536)
        found = [text(ask(stage)[2]) for _ in range(4)]
    assert len({one[0] for one in found}) == 1
    assert {one[-1] for one in found} == {"p", "q"}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/completions", {"prompt": "a", "echo": True}),
        ("/v1/chat/completions", {"prompt_logprobs": 1}),
    ],
)
def test_what_cannot_be_split_decode_does_alone(stage, path, fields):
    stage.pair(kv_transfer={"lease": 60, "enforce": True})
    status, headers, answer = ask(stage, path, **fields)
    assert (status, text(answer)) == (200, "d")
    assert not {"x-dynorch-prefill", "x-dynorch-degraded"} & headers.keys()
    assert stage.received("p") == []


def test_without_prefill_decode_works_alone_and_says_so(stage):
    stage.worker("d", kind="decode")
    gone = Blocked("t/prefill-0", "prefill", ["m"], "waiting", "exit status 1", 4.0)
    version = stage.publish("d", blocked=[gone])
    stage.frontend()
    stage.settled(version)
    status, headers, answer = ask(stage)
    assert (status, text(answer)) == (200, "d")
    assert headers["x-dynorch-degraded"] == "no prefill worker"
    assert stage.metric(DEGRADED % "no prefill worker") == 1
    assert stage.metric('dynorch_frontend_degraded{model="m"}') == 1
    status, health = stage.get("/health")
    assert (status, health["status"]) == (200, "degraded")
    assert "t/prefill-0 is waiting: exit status 1" in health["reason"]


def test_enforced_the_answer_is_503_with_the_reason(stage):
    stage.worker("d", kind="decode")
    gone = Blocked("t/prefill-0", "prefill", ["m"], "waiting", "exit status 1", 4.0)
    version = stage.publish("d", blocked=[gone])
    stage.frontend(kv_transfer={"lease": 60, "enforce": True})
    stage.settled(version)
    status, headers, answer = ask(stage)
    assert (status, headers["retry-after"]) == (503, "4")
    assert "t/prefill-0 is waiting: exit status 1" in answer["error"]["message"]
    assert "enforce" in answer["error"]["message"]
    assert stage.received("d") == []
    assert stage.get("/health")[0] == 503


def test_enforced_a_request_waits_for_a_prefill_that_returns(stage):
    stage.worker("p", kind="prefill")
    stage.worker("d", kind="decode")
    version = stage.publish("d", blocked=[returning("prefill")])
    stage.frontend(kv_transfer={"lease": 60, "enforce": True})
    stage.settled(version)
    with stage.stream() as waiting:
        eventually(lambda: stage.metric("dynorch_frontend_inflight_requests") == 1)
        stage.publish("d", "p")
        assert b"x-dynorch-prefill: t/prefill-0.0#1" in read_all(waiting)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"die": True}, "prefill failed"),
        ({"params": None}, "no ticket"),
        ({"params": {"do_remote_prefill": True}}, "no ticket"),
        ({"status": 500}, "prefill failed"),
        ({"raise": True}, "prefill failed"),
        ({"engine_dead": "p"}, "prefill failed"),
    ],
)
def test_a_prefill_that_fails_is_made_up_for(stage, trouble, reason):
    """First by another one, then by decode alone."""
    stage.pair("p q", retries=2)
    answers = [ask(stage, stub={"only": {"p": trouble}}) for _ in range(2)]
    assert [(status, text(answer)) for status, _, answer in answers] == [(200, "d after q")] * 2
    of_q = {key: "q" if value == "p" else value for key, value in trouble.items()}
    _, headers, answer = ask(stage, stub={"only": {"p": trouble, "q": of_q}})
    assert text(answer) == "d"
    assert headers["x-dynorch-degraded"] == reason


def test_with_the_retries_used_up_decode_works_alone(stage):
    stage.pair("p q", retries=0)
    _, headers, answer = ask(stage, stub={"only": {"p": {"params": None}, "q": {"params": None}}})
    assert (text(answer), headers["x-dynorch-degraded"]) == ("d", "no ticket")


def test_a_request_that_prefill_refuses_is_refused_in_the_words_of_decode(stage):
    stage.pair()
    status, headers, answer = ask(stage, stub={"status": 400})
    assert (status, text(answer)) == (400, "d")
    assert "x-dynorch-degraded" not in headers


def test_enforced_it_is_refused_in_the_words_of_prefill(stage):
    stage.pair(kv_transfer={"lease": 60, "enforce": True})
    status, headers, _ = ask(stage, stub={"status": 400})
    assert (status, headers["x-dynorch-worker"]) == (400, "t/prefill-0.0#1")
    assert stage.received("d") == []


def test_decode_dies_before_the_first_byte(stage):
    """The ticket may be spent, so both stages are made again."""
    stage.pair("p", "d e")
    for _ in range(2):
        status, _, answer = ask(stage, stub={"only": {"d": {"die": True}}})
        assert (status, text(answer)) == (200, "e after p")
    used = [json.loads(one["body"])["kv_transfer_params"]["remote_request_id"]
            for name in "de" for one in stage.received(name)]  # fmt: skip
    assert len(used) == len(set(used)), "a ticket was used twice"


def recovering(kind: str) -> Blocked:
    return Blocked(f"t/{kind}-0", kind, ["m"], "starting", "loads", 1.0, "crash", recovers=True)


def test_the_only_decode_is_back_before_its_request_has_waited_long(stage):
    stage.pair()
    stub = {"only": {"d": {"die": True}}}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, stage, stub=stub)
        eventually(lambda: stage.received("d"))
        stage.publish("p", blocked=[recovering("decode")])
        stage.worker("e", kind="decode")
        stage.publish("p", "e")
        status, headers, answer = asked.result(30)
    assert (status, text(answer)) == (200, "e after p")
    assert "x-dynorch-degraded" not in headers


def test_who_comes_after_the_crash_is_told_at_once(stage):
    stage.worker("p", kind="prefill")
    version = stage.publish("p", blocked=[recovering("decode")])
    stage.frontend()
    stage.settled(version)
    status, _, answer = ask(stage)
    assert status == 503
    assert "t/decode-0 is starting: loads" in answer["error"]["message"]


def test_the_only_decode_dies_before_the_first_byte(stage):
    stage.pair(hold=0)
    status, _, answer = ask(stage, stub={"only": {"d": {"die": True}}})
    assert status == 503
    assert "no other serves this model" in answer["error"]["message"]


def test_an_error_of_decode_may_be_the_transfers(stage):
    """vLLM answers a failed KV load with a bare 500: both stages are made again, elsewhere."""
    stage.pair("p q", "d e")
    status, _, answer = ask(stage, stub={"only": {"d": {"status": 500}}})
    assert status == 200
    assert text(answer)[0] == "e"
    status, _, answer = ask(stage, stub={"only": {"d": {"status": 500}}})
    assert status == 200
    assert len(stage.received("p")) + len(stage.received("q")) == 3
    # With nobody else to ask, decode is asked again; its second error is the answer.
    stage.publish("p", "d")
    eventually(lambda: stage.get("/health")[1]["roles"]["decode"]["routable"] == 1)
    before = len(stage.received("d"))
    status, _, answer = ask(stage, stub={"only": {"d": {"status": 500}}})
    assert (status, text(answer)) == (500, "d after p")
    assert len(stage.received("d")) == before + 2


def test_so_may_an_error_that_begins_a_stream(stage):
    stage.pair("p", "d e")
    for _ in range(2):
        with stage.stream(only={"d": {"error_event": True}}) as sock:
            data = read_all(sock)
        assert b"x-dynorch-worker: t/decode-2.0#1" in data
        assert b"error" not in data
    with stage.stream(only={"d": {"error_event": True}, "e": {"error_event": True}}) as sock:
        data = read_all(sock)
    assert b'data: {"error"' in data
    assert data.count(b"[DONE]") == 1


def test_a_draining_decode_never_had_the_ticket(stage):
    """It is given to another, and prefill isn't troubled again."""
    stage.pair("p", "d e")
    stage.call("GET", "/stub/drain")
    assert [ask(stage)[0] for _ in range(4)] == [200] * 4
    assert len(stage.received("p")) == 4
    used = [json.loads(one["body"]).get("kv_transfer_params", {}).get("remote_request_id")
            for name in "de" for one in stage.received(name, "chat")]  # fmt: skip
    assert sorted(used) == ["r1", "r2", "r3", "r4"]


def _ticket_without_decode(stage: Stage, **options: object):
    """A request that has its ticket, and nobody to give it to: decode is being restarted."""
    stage.pair("p", "d", **options)
    stage.workers["p"].send_signal(signal.SIGSTOP)
    sock = stage.stream()
    eventually(lambda: stage.metric("dynorch_frontend_inflight_requests") == 1)
    version = stage.publish("p", blocked=[returning("decode")])
    stage.settled(version)
    stage.workers["p"].send_signal(signal.SIGCONT)
    eventually(lambda: stage.metric(TICKETS % "issued") == 1)
    return sock


def test_a_ticket_waits_for_decode(stage):
    with _ticket_without_decode(stage) as sock:
        stage.publish("p", "d")
        assert b"x-dynorch-prefill" in read_all(sock)
    assert len(stage.received("p")) == 1


def test_a_ticket_past_its_deadline_is_made_anew(stage):
    with _ticket_without_decode(stage, kv_transfer={"lease": 0.2}) as sock:
        issued_at = time.monotonic()
        eventually(lambda: time.monotonic() > issued_at + 0.2)
        stage.publish("p", "d")
        assert b"x-dynorch-prefill: t/prefill-0.0#1" in read_all(sock)
    fates = {fate: stage.metric(TICKETS % fate) for fate in ("issued", "used", "expired")}
    assert fates == {"issued": 2, "used": 1, "expired": 1}
    assert '"r2"' in stage.received("d")[-1]["body"]


def test_a_ticket_of_the_dead_is_not_sent(stage):
    with _ticket_without_decode(stage) as sock:
        stage.kill("p")
        stage.publish("d", blocked=[Blocked("t/p-0", "prefill", ["m"], "waiting", "killed", 1.0)])
        data = read_all(sock)
    assert b" 200 OK" in data
    assert b"x-dynorch-degraded: ticket void" in data
    assert "kv_transfer_params" not in stage.received("d")[-1]["body"]
    assert stage.metric(TICKETS % "orphaned") == 1


def test_a_decode_that_was_frozen_past_the_deadline_does_not_begin(stage):
    """By then the blocks may be somebody else's; the request is made again, on the same worker."""
    stage.pair(kv_transfer={"lease": 0.4})
    stage.workers["d"].send_signal(signal.SIGSTOP)
    with stage.stream() as sock:
        eventually(lambda: stage.metric(TICKETS % "used") == 1)
        issued_at = time.monotonic()
        eventually(lambda: time.monotonic() > issued_at + 0.4)
        stage.workers["d"].send_signal(signal.SIGCONT)
        assert b"x-dynorch-worker: t/decode-1.0#1" in read_all(sock)
    (one,) = stage.received("d")
    assert '"r2"' in one["body"]


def test_a_client_that_leaves_between_the_stages_drops_the_ticket(stage):
    _ticket_without_decode(stage).close()
    eventually(lambda: stage.metric(TICKETS % "dropped") == 1)
    assert stage.received("d") == []


def test_a_client_that_leaves_cancels_whoever_has_the_request(stage):
    stage.pair()
    stage.stream(only={"p": {"hang": True}}).close()
    eventually(lambda: stage.metric("dynorch_frontend_disconnected_clients_total") == 1)
    with stage.stream(hang_after=True) as sock:
        read_until(sock, b"data: {")
    eventually(lambda: stage.get("/stub/seen")[1]["cancelled"] == 1)
    assert stage.metric("dynorch_frontend_inflight_requests") == 0


def test_decode_dies_in_mid_stream(stage):
    stage.pair("p", "d e")
    with stage.stream(hang_after=True) as sock:
        read_until(sock, b"data: {")
        for name in "de":
            stage.kill(name)
        rest = read_all(sock)
    assert b'data: {"error"' in rest
    assert rest.rstrip(b"\r\n0").endswith(b"data: [DONE]")


def test_aggregated_workers_of_the_same_model_serve_without_a_ticket(stage):
    stage.worker("a")
    stage.worker("p", kind="prefill")
    stage.serve("a", "p")
    _, headers, answer = ask(stage)
    assert text(answer) == "a"
    assert "x-dynorch-degraded" not in headers
    assert stage.get("/health")[1]["status"] == "healthy"
