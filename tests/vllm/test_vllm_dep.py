"""Two data-parallel ranks of a mixture-of-experts model, and one engine that has it to itself.

The lone engine says what the right answers are, and keeps serving while the ranks are away. What
the ranks lack on a CPU is added by `cpu_collectives`.
"""

import json
import os
import signal

import pytest

from tests.e2e.conftest import Dynorch, zombie
from tests.e2e.traffic import Traffic
from tests.eventually import eventually
from tests.vllm import tiny_model
from tests.vllm.conftest import ask
from tests.vllm.deployed import answer_of, deployed, mapped, part, toml_lines, tree
from tests.vllm.questions import FLAGS, MODEL, QUESTIONS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

SERVE_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Dynorch:
    model = tiny_model.make(tmp_path_factory.mktemp("moe"), moe=True)
    text = f"""
name = "dep"
model = "{model}"
served-model-name = "{MODEL}"
restart = {{ backoff-initial = "100ms", intensity = 20 }}
[frontend]
port = {{port}}
routing = "round-robin"
[roles.ranks]
engine = "vllm"
data-parallel = 2
liveness = {{ ask = "500ms", unready = "2s", hang = "6s", busy = "20s", expire = "8s" }}
[roles.ranks.vllm]
{toml_lines(FLAGS)}
[roles.lone]
engine = "vllm"
[roles.lone.vllm]
{toml_lines(FLAGS)}
"""
    with deployed(text) as dynorch:
        yield dynorch


def gang(served) -> dict:
    """The replica of two ranks, ready; with it the lone one."""
    replica = served.replica("ranks")
    assert (replica["phase"], replica["routable"]) == ("ready", True), replica["reason"]
    assert served.topology()["health"] == "ready"
    return replica


def ranks(served) -> list[dict]:
    return eventually(lambda: gang(served), SERVE_S)["workers"]


ASKED = ["completion", "completion-logprobs", "completion-batch", "chat-logprobs", "chat-schema"]


@pytest.mark.parametrize("name", ASKED)
def test_each_rank_answers_as_a_lone_engine_does(served, name):
    path, body = QUESTIONS[name]
    lone = served.replica("lone")["workers"][0]["id"]
    status, right = answer_of(served, lone, path, body)
    assert status == 200
    for rank in ranks(served):
        status, answer = answer_of(served, rank["id"], path, body)
        assert status == 200
        assert close(json.loads(answer)["choices"], json.loads(right)["choices"])


def close(one, other) -> bool:
    """Equal, but for the last digits of numbers: ranks add up in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, abs=1e-4) if isinstance(one, float) else other)


def test_each_rank_is_routed_by_itself(served):
    before = [worker["requests"] for worker in served.engine_workers()]
    for _ in range(6):
        assert ask(served.url, *QUESTIONS["completion"]).status == 200

    def each_has_its_share():
        now = [worker["requests"] for worker in served.engine_workers()]
        assert [after - then for after, then in zip(now, before, strict=True)] == [2, 2, 2]
        return True

    eventually(each_has_its_share)


def replaced(served, before: dict, old, names) -> dict:
    """Wait for both ranks' next life; nothing of the last one is left, nobody else is touched."""

    def next_life():
        replica = served.replica("ranks")
        assert replica["incarnation"] > before["incarnation"]
        return all(worker["pid"] for worker in replica["workers"])

    eventually(next_life, within_s=90, every_s=0.005)
    assert [pid for pid in old if not zombie(pid)] == []
    assert [name for name in names if name.exists()] == []
    return eventually(lambda: gang(served), SERVE_S)


VICTIMS = [
    (1, "main"), (0, "VLLM::EngineCore_DP0"), (1, "VLLM::Worker_DP1"), (0, "VLLM::DPCoordinator"),
]  # fmt: skip


@pytest.mark.parametrize(("rank", "title"), VICTIMS)
def test_a_killed_process_costs_its_gang_and_no_request(served, rank, title):
    """Requests without a byte yet go to the lone engine; streams that had some are told."""
    before = eventually(lambda: gang(served), SERVE_S)
    others = {role: served.pid(role) for role in ("lone", "frontend")}
    old = {pid: name for worker in before["workers"] for pid, name in tree(worker["pid"]).items()}
    names = mapped(old)
    with Traffic(served.url, clients=2, pause_s=0.5) as traffic:
        os.kill(part(before["workers"][rank], title), signal.SIGKILL)
        replica = replaced(served, before, old, names)
        traffic.go_on(6)
    assert [failure for failure in traffic.failures if not failure.startswith("stream")] == []
    assert "SIGKILL" in replica["reason"]
    if title != "main":
        assert title.partition("_DP")[0] in replica["reason"]
    assert {role: served.pid(role) for role in others} == others
    assert replica["restarts"] == before["restarts"] + 1


def test_a_frozen_rank_stops_the_other_and_is_found(served):
    """They step together: one that is stopped holds up the other's request for ever."""
    before = eventually(lambda: gang(served), SERVE_S)
    old = {pid: name for worker in before["workers"] for pid, name in tree(worker["pid"]).items()}
    names = mapped(old)
    victim = part(before["workers"][0], "VLLM::Worker_DP0")
    os.kill(victim, signal.SIGSTOP)
    path, body = QUESTIONS["completion"]
    with pytest.raises(AssertionError):
        answer_of(served, before["workers"][1]["id"], path, body, within_s=3)
    replica = replaced(served, before, old, names)
    assert replica["cause"] == "unhealthy"
    assert f"VLLM::Worker_DP0 (pid {victim}) is stopped" in replica["reason"]


def test_down_leaves_nothing(served):
    workers = ranks(served)
    old = {pid: name for worker in workers for pid, name in tree(worker["pid"]).items()}
    names = mapped(old)
    served("down", timeout=120)
    assert [pid for pid in old if not zombie(pid)] == []
    assert [name for name in names if name.exists()] == []
