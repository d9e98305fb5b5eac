"""Real vLLM through the whole of dynorch: command line, daemon, zygote, frontend.

The order matters, because a start costs seconds: first everything is asked of an undisturbed
worker, then its processes are killed one after the other.
"""

import os
import re
import signal

import pytest

from tests.e2e.conftest import Dynorch, zombie
from tests.e2e.test_crashes import Stream
from tests.e2e.test_openai_client import leaving_frees
from tests.eventually import eventually
from tests.openai_contract import CONTRACT
from tests.vllm.conftest import ask
from tests.vllm.deployed import ask_worker, client_of, deployed, mapped, part, toml_lines, tree
from tests.vllm.questions import FLAGS, MODEL, QUESTIONS, comparable

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def served(model_dir) -> Dynorch:
    text = f"""
name = "real"
model = "{model_dir}"
served-model-name = "{MODEL}"
restart = {{ backoff-initial = "100ms", intensity = 20 }}
[frontend]
port = {{port}}
[roles.worker]
engine = "vllm"
# Routes of vLLM's that nobody should have, one of which can break its engine.
env = {{ VLLM_SERVER_DEV_MODE = "1" }}
liveness = {{ ask = "500ms", unready = "2s", hang = "6s", busy = "60s", expire = "8s" }}
[roles.worker.vllm]
{toml_lines(FLAGS)}
"""
    with deployed(text) as dynorch:
        yield dynorch


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_contract(served, promise):
    promise(client_of(served), MODEL)


def test_a_client_that_leaves_frees_its_request(served):
    leaving_frees(served, client_of(served), MODEL, tokens=480)


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_through_dynorch_equal_those_of_vllms_own_server(reference, served, name):
    path, body = QUESTIONS[name]
    answer = ask(served.url, path, body)
    assert answer.status == reference.answers[name].status
    if answer.status == 404:
        return  # an unknown model never gets past the frontend, which knows them all
    assert comparable(answer.body) == comparable(reference.answers[name].body)


def test_forged_transfer_parameters_reach_no_engine(served):
    path, body = QUESTIONS["completion"]
    pid = served.pid("worker")
    forged = {**body, "kv_transfer_params": {"do_remote_prefill": True}}
    assert ask(served.url, path, forged).status == 200
    assert served.pid("worker") == pid


def ready(served) -> dict:
    replica = served.replica("worker")
    assert replica["phase"] == "ready", replica["reason"]
    assert served.topology()["health"] == "ready"
    return replica


def replaced(served, before: dict, old, names) -> dict:
    """Wait for the next life and look at once what is left of the last; then, until it serves."""

    def next_life():
        replica = served.replica("worker")
        assert replica["incarnation"] > before["incarnation"]
        return replica["workers"][0]["pid"]

    eventually(next_life, within_s=90, every_s=0.005)
    # The new incarnation has hardly begun: nothing of the old one may be there.
    assert [pid for pid in old if not zombie(pid)] == []
    assert [name for name in names if name.exists()] == []
    replica = eventually(lambda: ready(served), within_s=120)
    assert ask(served.url, *QUESTIONS["completion"]).status == 200
    return replica


PARTS = ["main", "VLLM::EngineCore", "VLLM::Worker"]


@pytest.mark.parametrize("victim", PARTS)
def test_statement_67_killed_processes_come_back_clean_and_explained(served, victim):
    before = eventually(lambda: ready(served), within_s=120)
    old = tree(before["workers"][0]["pid"])
    names = mapped(old)
    assert names, "vLLM's processes share memory"
    os.kill(part(before["workers"][0], victim), signal.SIGKILL)
    replica = replaced(served, before, old, names)
    assert "SIGKILL" in replica["reason"]
    if victim != "main":
        assert victim in replica["reason"]


def test_statement_67_a_sigterm_while_it_loads_is_made_up_for(served):
    before = eventually(lambda: ready(served), within_s=120)
    os.kill(before["workers"][0]["pid"], signal.SIGKILL)

    def loading():
        replica = served.replica("worker")
        assert replica["phase"] == "starting"
        worker = replica["workers"][0]
        assert worker["pid"]
        part(worker, "VLLM::EngineCore")
        return replica

    starting = eventually(loading, within_s=60, every_s=0.005)
    old = tree(starting["workers"][0]["pid"])
    os.kill(starting["workers"][0]["pid"], signal.SIGTERM)
    replaced(served, starting, old, mapped(old))


@pytest.mark.parametrize("victim", [*PARTS, "output thread"])
def test_frozen_processes_are_found_while_health_says_200(served, victim):
    before = eventually(lambda: ready(served), within_s=120)
    worker = before["workers"][0]
    old = tree(worker["pid"])
    names = mapped(old)
    pid = 0 if victim == "output thread" else part(worker, victim)
    if not pid:
        # Its answer can't be put into words, and the thread that would say so dies of that.
        body = {"method": "get_kv_cache_spec"}
        assert ask_worker(served, worker["id"], "/collective_rpc", body, within_s=0.5) is None
    else:
        os.kill(pid, signal.SIGSTOP)
    if victim != "main":
        assert ask_worker(served, worker["id"], "/health") == 200
    eventually(lambda: not served.replica("worker")["routable"], within_s=30)
    replica = replaced(served, before, old, names)
    assert replica["cause"] == "unhealthy"
    if victim == "main":
        assert f"(pid {worker['pid']}, which is stopped)" in replica["reason"]
    elif not pid:
        assert re.search(r"hasn't answered for \d+ s: VLLM::EngineCore", replica["reason"])
    else:
        assert f"{victim} (pid {pid}) is stopped (state T)" in replica["reason"]


def test_daemon_killed_under_streams_breaks_none_and_is_adopted(served):
    eventually(lambda: ready(served), within_s=120)
    pids = {role: served.pid(role) for role in ("worker", "frontend")}
    streams = [Stream(client_of(served), tokens=400, model=MODEL) for _ in range(4)]
    for stream in streams:
        stream.start()
    eventually(lambda: all(stream.tokens > 1 for stream in streams), within_s=60)
    served.kill_daemon()
    gone = served("status", code=3)
    assert "daemon gone" in gone.stdout
    served("up", "-d", served.vllm_file, timeout=120)
    assert {role: served.pid(role) for role in pids} == pids
    for stream in streams:
        stream.join(timeout=120)
        assert stream.failure is None
    assert ask(served.url, *QUESTIONS["completion"]).status == 200


def test_down_leaves_nothing(served):
    eventually(lambda: ready(served), within_s=120)
    old = [*tree(served.pid("worker")), served.pid("frontend"), served.daemon_pid()]
    names = mapped(old)
    served("down", timeout=120)
    assert [pid for pid in old if not zombie(pid)] == []
    assert [name for name in names if name.exists()] == []
    served("status", code=3)
