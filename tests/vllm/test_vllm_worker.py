"""A real vLLM worker, forked from a zygote, answers as vLLM's own server does, and dies loudly."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from orchestrator.core.diagnosis import End, diagnose
from orchestrator.core.events import ExitFacts
from orchestrator.core.reasons import Cause
from orchestrator.wire import messages, plane
from tests.eventually import eventually
from tests.vllm.questions import FLAGS, QUESTIONS, comparable
from tests.vllm.worker import Worker

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

RATIO_MAX = 0.15
"""From the fork to readiness, of the cold start of vLLM's own server to its first answer."""


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_equal_those_of_vllms_own_server(reference, worker, name):
    path, body = QUESTIONS[name]
    status, answer = worker.ask(path, body)
    assert status == reference.answers[name].status
    assert comparable(answer) == comparable(reference.answers[name].body)


def test_a_tool_call_is_parsed(worker):
    for name in ("tool-named", "tool-required"):
        _, answer = worker.ask(*QUESTIONS[name])
        (call,) = json.loads(answer)["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Oslo"}


def test_structured_output_obeys_its_schema(worker):
    _, answer = worker.ask(*QUESTIONS["chat-schema"])
    content = json.loads(answer)["choices"][0]["message"]["content"]
    assert json.loads(content)["city"] in {"Paris", "Oslo"}


def test_stream_ends_with_usage_and_done(worker):
    _, answer = worker.ask(*QUESTIONS["completion-stream"])
    *_, usage, done = answer.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == 24


def test_other_routes_are_there(worker):
    for path in ("/v1/models", "/health", "/version", "/metrics"):
        assert worker.ask(path)[0] == 200, path


def test_cancel_frees_the_engine(worker):
    path, body = QUESTIONS["completion-stream"]
    request_id = worker.open(path, {**body, "max_tokens": 480, "ignore_eos": True})
    items = worker.receive()
    worker.cancel(request_id)
    while not isinstance(items[-1], plane.End | plane.Fail):
        items = worker.receive()

    def running() -> float:
        lines = worker.ask("/metrics")[1].decode().splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("vllm:num_requests_running")
        )

    # The gauge is as old as the engine's last step, so give it one.
    eventually(lambda: worker.ask(*QUESTIONS["completion"]) and running() == 0, 10)


def test_beats_count_tokens(worker):
    before = worker.said(messages.Beat)[-1].tokens
    worker.ask(*QUESTIONS["completion"])
    eventually(lambda: worker.said(messages.Beat)[-1].tokens >= before + 24)


def test_it_says_what_it_is_and_what_it_does(worker):
    (hello,) = worker.said(messages.Hello)
    assert (hello.engine, hello.pid) == ("vllm", worker.pid)
    assert hello.version.startswith("0.")
    assert worker.said(messages.Ready)[0].models == ["tiny"]
    assert worker.said(messages.Progress)


def test_it_starts_in_a_fraction_of_a_cold_start(
    reference, worker, zygote, record_testsuite_property
):
    ratio = worker.ready_s / reference.first_answer_s
    # In the JUnit report, for people.
    record_testsuite_property("imports_s", round(zygote.import_s, 1))
    record_testsuite_property("fork_to_ready_s", round(worker.ready_s, 1))
    record_testsuite_property("cold_start_s", round(reference.first_answer_s, 1))
    record_testsuite_property("ratio", round(ratio, 3))
    assert ratio <= RATIO_MAX


def test_children_keep_none_of_the_hosts_sockets(worker):
    """Or a frontend and the daemon would believe a dead worker alive."""
    engines_own = {
        f"socket:[{line.split()[6]}]"
        for line in Path("/proc/net/unix").read_text().splitlines()
        if f"{worker.config.state_dir}/t/" in line
    }
    host = _sockets(worker.pid) - engines_own
    assert host
    children = [each.pid for each in worker.session() if each.pid != worker.pid]
    assert len(children) >= 2
    for pid in children:
        assert not host & _sockets(pid)


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "VLLM::Worker"])
def test_death_of_a_part_is_named(zygote, model_dir, engine_env, tmp_path, victim):
    with Worker(zygote, engine_env, tmp_path, model_dir, FLAGS) as worker:
        worker.wait_ready()
        worker.open(*QUESTIONS["completion-stream"])
        worker.part(victim).kill()
        bye = eventually(lambda: worker.said(messages.Bye), 15)[0]
        assert bye.code == "engine-died"
        assert bye.text.startswith(victim)
        assert "was killed by SIGKILL" in bye.text
        assert worker.wait() == 71


def test_sigterm_ends_it_cleanly(zygote, model_dir, engine_env, tmp_path):
    with Worker(zygote, engine_env, tmp_path, model_dir, FLAGS) as worker:
        worker.wait_ready()
        names = worker.note_shared_memory()
        assert names, "an engine shares memory with its worker"
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait() == 0
        eventually(lambda: not worker.session(), 10)
        assert not [name for name in names if Path("/dev/shm", name).exists()]
        assert not worker.said(messages.Bye)


NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_producer", "kv_buffer_device": "cpu"}


def test_a_taken_nixl_port_ends_the_start_at_once_and_is_explained(
    zygote, model_dir, engine_env, tmp_path
):
    """vLLM alone waits for ever, with a listener that is dead."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        flags = {**FLAGS, "kv-transfer-config": NIXL}
        with Worker(zygote, engine_env | env, tmp_path, model_dir, flags) as worker:
            names = eventually(worker.note_shared_memory, 60)
            assert worker.wait() == 70
            eventually(lambda: not worker.session(), 10)
            assert not [name for name in names if Path("/dev/shm", name).exists()]
            (bye,) = worker.said(messages.Bye)
            log = worker.log.read_text()
    assert bye.code == "start-crash"
    assert f"tcp://127.0.0.1:{port}" in bye.text
    facts, said = ExitFacts(status=70 << 8, tail=log), {"bye_code": bye.code, "bye_text": bye.text}
    reason = diagnose(End(name="t/prefill-0", facts=facts, ready_s=None, **said))
    assert reason.cause is Cause.PORT_IN_USE
    assert f"NIXL's port is taken: 127.0.0.1:{port}" in reason.sentence


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"max-modl-len": 512}, "unrecognized arguments: --max-modl-len"),
        ({"max-model-len": "many"}, "max-model-len"),
        ({"enable-auto-tool-choice": True, "tool-call-parser": "no"}, "invalid tool call parser"),
        ({"max-model-len": 9999}, "is greater than the derived max_model_len"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(
    zygote, model_dir, engine_env, tmp_path, flags, complaint
):
    with Worker(zygote, engine_env, tmp_path, model_dir, flags) as worker:
        assert worker.wait() == 64
        bye = eventually(lambda: worker.said(messages.Bye))[0]
        assert bye.code == "config"
        assert complaint in bye.text
        assert "\n" not in bye.text


def _sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = str(entry.readlink())
        if target.startswith("socket:"):
            found.add(target)
    return found
