"""Prefill and decode on real vLLM, with a real NIXL transfer between them.

First everything is asked of undisturbed workers, then they are frozen and killed one after the
other. vLLM's own server says what the right answers are; its own counters, that KV cache moved.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.conftest import Dynorch
from tests.e2e.traffic import Traffic
from tests.eventually import eventually
from tests.vllm.conftest import ask
from tests.vllm.deployed import answer_of, deployed, part, toml_lines
from tests.vllm.questions import FLAGS, MODEL, QUESTIONS, same_but_for_its_setup

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

SERVE_S = 120
TRANSFERS = "vllm:nixl_xfer_time_seconds_count"
BYTES = "vllm:nixl_bytes_transferred_sum"
FAILED = "vllm:nixl_num_failed_transfers_total"
KEEP = {"do_remote_decode": True, "do_remote_prefill": False}
"""What makes a prefill worker keep a request's KV cache."""


@pytest.fixture(scope="module")
def served(model_dir) -> Dynorch:
    text = f"""
name = "disagg"
model = "{model_dir}"
served-model-name = "{MODEL}"
restart = {{ backoff-initial = "100ms", intensity = 20 }}
[frontend]
port = {{port}}
hold = "90s"
[roles.prefill]
kind = "prefill"
engine = "vllm"
[roles.prefill.vllm]
{toml_lines(FLAGS)}
[roles.decode]
kind = "decode"
engine = "vllm"
[roles.decode.vllm]
{toml_lines(FLAGS)}
[kv-transfer]
connector = "nixl"
lease = "30s"
"""
    with deployed(text) as dynorch:
        yield dynorch


def ready(served) -> bool:
    assert served.topology()["health"] == "ready", served.topology()
    return True


def workers(served, role: str) -> list[dict]:
    return [
        worker
        for each in served.topology()["roles"]
        if each["name"] == role
        for replica in each["replicas"]
        for worker in replica["workers"]
    ]


def pids(served) -> dict[str, int]:
    """Of every worker, frontends included."""
    roles = served.topology()["roles"]
    found = [worker for each in roles for worker in workers(served, each["name"])]
    return {worker["id"].partition("#")[0]: worker["pid"] for worker in found}


def counted(served, role: str, metric: str) -> float:
    """One of vLLM's own counters, over all workers of a role."""
    total = 0.0
    for worker in workers(served, role):
        _, page = answer_of(served, worker["id"], "/metrics")
        lines = [line for line in page.decode().splitlines() if line.startswith(metric + "{")]
        total += sum(float(line.split()[-1]) for line in lines)
    return total


def asked(served, name: str, **more) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer through the frontend."""
    path, body = QUESTIONS[name]
    request = urllib.request.Request(
        served.url + path, json.dumps(body | more).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def is_right(reference, name: str, body: bytes) -> bool:
    right = reference.answers[name].body
    assert same_but_for_its_setup(body) == same_but_for_its_setup(right)
    return True


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_through_both_equal_those_of_vllms_own_server(reference, served, name):
    status, _, body = asked(served, name)
    assert status == reference.answers[name].status
    assert status == 404 or is_right(reference, name, body)


IN_TWO = ["completion", "completion-stream", "completion-tokens", "chat", "chat-logprobs",
          "chat-schema", "tool-named"]  # fmt: skip


def test_kv_cache_moves_from_prefill_to_decode(reference, served):
    """One transfer for each request, by vLLM's own count, and none that failed."""
    before = counted(served, "decode", TRANSFERS), counted(served, "decode", BYTES)
    for name in IN_TWO:
        status, headers, body = asked(served, name)
        assert status == 200
        assert headers["x-dynorch-prefill"].startswith("disagg/prefill-0.0#")
        assert headers["x-dynorch-worker"].startswith("disagg/decode-0.0#")
        assert is_right(reference, name, body)

    def counts():
        transfers, moved = counted(served, "decode", TRANSFERS), counted(served, "decode", BYTES)
        assert transfers == before[0] + len(IN_TWO)
        return moved > before[1]

    eventually(counts)
    assert counted(served, "decode", FAILED) == 0


FORGED = [
    {"do_remote_prefill": True},
    {"do_remote_prefill": True, "remote_engine_id": "x", "remote_block_ids": [[1]]},
    {"do_remote_decode": True},
]
ROUTES = ["completion", "completion-batch", "chat", "responses", "messages"]


@pytest.mark.parametrize("name", ROUTES)
def test_a_client_that_forges_transfer_parameters_harms_nobody(reference, served, name):
    before = pids(served)
    for forged in FORGED:
        status, _, body = asked(served, name, kv_transfer_params=forged)
        assert status == 200
        assert is_right(reference, name, body)
    assert pids(served) == before


def kept_by_prefill(served, name: str) -> dict:
    """Let prefill read a prompt and keep its KV cache; the parameters for decode."""
    path, body = QUESTIONS[name]
    prefill = workers(served, "prefill")[0]["id"]
    status, answer = answer_of(
        served, prefill, path, {**body, "max_tokens": 1, "kv_transfer_params": KEEP}
    )
    assert status == 200
    return json.loads(answer)["kv_transfer_params"]


def read_by_decode(served, reference, name: str, params: dict) -> None:
    path, body = QUESTIONS[name]
    decode = workers(served, "decode")[0]["id"]
    status, answer = answer_of(served, decode, path, {**body, "kv_transfer_params": params})
    assert status == 200
    assert is_right(reference, name, answer)


def test_somebody_elses_parameters_are_of_no_use_to_a_client(reference, served):
    """With them vLLM alone answers from the other prompt's KV cache, and says nothing."""
    theirs = kept_by_prefill(served, "chat")
    status, _, body = asked(served, "completion", kv_transfer_params=theirs)
    assert status == 200
    assert is_right(reference, "completion", body)
    read_by_decode(served, reference, "chat", theirs)


def test_decode_takes_prefills_tokens_for_its_prompt(reference, served):
    """Whatever its own template makes of the messages, as when midnight is between the stages."""
    path, body = QUESTIONS["chat"]
    prefill, decode = (workers(served, role)[0]["id"] for role in ("prefill", "decode"))
    read = {**body, "max_tokens": 1, "kv_transfer_params": KEEP, "return_token_ids": True}
    status, answer = answer_of(served, prefill, path, read)
    assert status == 200
    told = json.loads(answer)
    params = told["kv_transfer_params"] | {"prompt_token_ids": told["prompt_token_ids"]}
    other = [{"role": "system", "content": "It is 1 January."}, *body["messages"]]
    asked_later = {**body, "messages": other, "kv_transfer_params": params}
    status, answer = answer_of(served, decode, path, asked_later)
    assert status == 200
    assert is_right(reference, "chat", answer)


def draining(served) -> bool:
    return served.replica("prefill")["phase"] == "draining"


def test_a_draining_prefill_waits_for_decode_to_read(reference, served):
    eventually(lambda: ready(served), SERVE_S)
    before, pid = counted(served, "decode", TRANSFERS), served.pid("prefill")
    params = kept_by_prefill(served, "completion")
    restart = served.popen("restart", "disagg/prefill")
    eventually(lambda: draining(served))
    with pytest.raises(AssertionError):
        eventually(lambda: not draining(served), within_s=3)
    read_by_decode(served, reference, "completion", params)
    # Long before its lease ends.
    eventually(lambda: not draining(served), within_s=15)
    assert restart.wait(SERVE_S) == 0
    assert served.pid("prefill") != pid
    eventually(lambda: counted(served, "decode", TRANSFERS) == before + 1)


@contextlib.contextmanager
def frozen(victims: list[int]):
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def between_the_stages(reference, served):
    """While prefill has answered a request, and decode, which is frozen, hasn't begun with it.

    At the end decode goes on, if it still is there, and the answer must come and be right.
    """
    eventually(lambda: ready(served), SERVE_S)
    before = workers(served, "prefill")[0]["requests"]
    answers = []
    question = threading.Thread(target=lambda: answers.append(asked(served, "completion")))
    with frozen([worker["pid"] for worker in workers(served, "decode")]):
        question.start()

        def has_read():
            (worker,) = workers(served, "prefill")
            return worker["requests"] > before and not worker["inflight"]

        eventually(has_read, 30)
        yield
    question.join(SERVE_S)
    status, _, body = answers[0]
    assert status == 200, body
    assert is_right(reference, "completion", body)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_one_dies_between_prefills_answer_and_the_transfer(reference, served, role):
    with between_the_stages(reference, served):
        os.kill(served.pid(role), signal.SIGKILL)
        eventually(lambda: served.replica(role)["restarts"] > 0)
    works_again(reference, served)


def works_again(reference, served) -> None:
    """In both stages: decode has met the new prefill, at the old one's port."""
    eventually(lambda: ready(served), SERVE_S)
    before = counted(served, "decode", TRANSFERS)
    status, headers, body = asked(served, "chat-logprobs")
    assert status == 200
    assert "x-dynorch-prefill" in headers
    assert is_right(reference, "chat-logprobs", body)
    eventually(lambda: counted(served, "decode", TRANSFERS) == before + 1)


TOO_EARLY = (
    "post: InternalServerError(\"Error code: 503 - The model `tiny` can't be served now. "
    "disagg/decode-0 is "
)
"""Told at once to whoever comes while the only decode worker is away."""
PARTS = ["main", "VLLM::EngineCore", "VLLM::Worker"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("title", PARTS)
def test_a_killed_process_costs_no_request_without_a_byte(reference, served, role, title):
    """Nor anybody else's process. Streams that had begun are told; so is who comes too early."""
    eventually(lambda: ready(served), SERVE_S)
    before, replica = pids(served), served.replica(role)
    (worker,) = replica["workers"]
    with Traffic(served.url, clients=2, pause_s=0.5) as traffic:
        os.kill(part(worker, title), signal.SIGKILL)

        def back():
            now = served.replica(role)
            assert now["incarnation"] == replica["incarnation"] + 1
            assert "SIGKILL" in now["reason"]
            return ready(served)

        eventually(back, SERVE_S)
        traffic.go_on(4)
    told = ("stream",) if role == "prefill" else ("stream", TOO_EARLY)
    assert [failure for failure in traffic.failures if not failure.startswith(told)] == []
    after = pids(served)
    assert {name for name in after if after[name] != before[name]} == {f"disagg/{role}-0.0"}
    works_again(reference, served)


def test_without_prefill_decode_serves_alone_and_says_so(reference, served):
    served("stop", "disagg/prefill")
    status, headers, body = asked(served, "completion")
    assert status == 200
    assert headers["x-dynorch-degraded"]
    assert is_right(reference, "completion", body)
    health = json.loads(ask(served.url, "/health").body)
    assert health["status"] == "degraded"
    served("start", "disagg/prefill", timeout=SERVE_S)
    works_again(reference, served)


def test_a_side_channel_port_that_a_stranger_took_is_changed_for_another(reference, served):
    """The stranger takes it while prefill is dead; to vLLM that would be a start without end."""
    eventually(lambda: ready(served), SERVE_S)
    (prefill,) = workers(served, "prefill")
    port = prefill["ports"]["side-channel"]
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(prefill["pid"], signal.SIGKILL)

        def takes_it():
            with contextlib.suppress(OSError):
                stranger.bind(("127.0.0.1", port))
                return True

        eventually(takes_it, 10, every_s=0.001)
        stranger.listen()
        eventually(lambda: served.replica("prefill")["restarts"] > 0)
        works_again(reference, served)
        assert workers(served, "prefill")[0]["ports"]["side-channel"] != port


def test_down_leaves_nothing(served):
    eventually(lambda: ready(served), SERVE_S)
    old = pids(served)
    served("down", timeout=120)
    assert [name for name, pid in old.items() if Path(f"/proc/{pid}").exists()] == []
