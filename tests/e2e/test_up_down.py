"""The happy way, and what surrounds it: one command serves a topology, one ends it."""

import json
import os
import shutil
import signal
import socket
import urllib.request

from openai import OpenAI

from orchestrator.host import procfs
from tests.e2e.conftest import alive, zombie
from tests.eventually import eventually

AGG = """
name  = "agg"
model = "tiny"
[frontend]
port = {port}
[roles.worker]
engine = "sim"
"""
ASK = {"model": "tiny", "prompt": "x", "max_tokens": 4}


def client_of(dynorch) -> OpenAI:
    return OpenAI(base_url=f"{dynorch.url}/v1", api_key="none", max_retries=0, timeout=30)


def test_up_serves_and_down_leaves_nothing(dynorch):
    file = dynorch.file(AGG)
    up = dynorch("up", "-d", file)
    assert dynorch.url in up.stdout
    assert "curl" in up.stdout
    client = client_of(dynorch)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert answer.usage.completion_tokens == 5
    pids = [dynorch.pid("worker"), dynorch.pid("frontend"), dynorch.daemon_pid()]
    assert all(alive(pid) for pid in pids)
    dynorch("down")
    assert all(zombie(pid) for pid in pids)
    assert list((dynorch.run_dir / "lives").iterdir()) == []
    assert not (dynorch.run_dir / "code").exists()
    assert dynorch("status", code=3)


def test_a_daemon_that_was_started_for_a_refused_file_goes_without_a_trace(dynorch):
    """It makes its imports while the file is read, and touches nothing before it is told to."""
    mark = f"DYNORCH_RUN_DIR={dynorch.run_dir}".encode()
    shutil.rmtree(dynorch.run_dir, ignore_errors=True)
    refused = dynorch("up", "-d", dynorch.file("name = 'agg'\nnonsense = 1\n"), code=2)
    assert "nothing was started" in refused.stderr
    eventually(lambda: not [pid for pid in procfs.pids() if procfs.environ_has(pid, mark)])
    assert not dynorch.run_dir.exists()


def test_status_json_has_the_promised_shape(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    status = dynorch.status()
    assert {"pid", "version"} <= status["daemon"].keys()
    (topology,) = status["topologies"]
    assert topology["name"] == "agg"
    assert topology["health"] == "ready"
    role = next(role for role in topology["roles"] if role["name"] == "worker")
    assert role["kind"] == "aggregated"
    (replica,) = role["replicas"]
    assert {"index", "phase", "reason", "incarnation", "restarts", "workers"} <= replica.keys()
    assert {"id", "pid", "gpus"} <= replica["workers"][0].keys()
    assert topology["processes"] == []


def test_foreground_stays_until_ctrl_c_and_leaves_nothing(dynorch):
    up = dynorch.popen("up", dynorch.file(AGG))
    eventually(lambda: "curl" in dynorch.said(), within_s=30)
    pid = dynorch.pid("worker")
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=30) == 130, dynorch.said()
    assert zombie(pid)
    dynorch("status", code=3)


def test_a_killed_foreground_up_takes_its_topology_down(dynorch):
    up = dynorch.popen("up", dynorch.file(AGG))
    eventually(lambda: "curl" in dynorch.said(), within_s=30)
    pid = dynorch.pid("worker")
    up.kill()
    up.wait()
    eventually(lambda: zombie(pid), within_s=20)
    eventually(lambda: dynorch("status", code=None).returncode == 3, within_s=20)


def test_up_again_changes_nothing(dynorch):
    file = dynorch.file(AGG)
    dynorch("up", "-d", file)
    before = dynorch.pid("worker")
    dynorch("up", "-d", file)
    assert dynorch.pid("worker") == before
    dynorch.file(AGG + "\n# another text\n")
    dynorch("up", "-d", file)
    assert dynorch.pid("worker") == before


def test_restart_gives_a_new_incarnation(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    before = dynorch.replica("worker")
    dynorch("restart", "agg/worker-0")
    after = dynorch.replica("worker")
    assert after["incarnation"] == before["incarnation"] + 1
    assert after["phase"] == "ready"
    assert after["restarts"] == 0


def test_stop_and_start_of_a_part(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    dynorch("stop", "agg/worker")
    assert dynorch.replica("worker")["phase"] == "stopped"
    with_reason = request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "x"})
    assert with_reason[0] == 503
    dynorch("start", "agg/worker")
    assert dynorch.replica("worker")["phase"] == "ready"
    status, body = request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "x"})
    assert status == 200, body


def test_two_topologies_share_a_daemon(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    daemon = dynorch.daemon_pid()
    second = """
name = "side"
[processes.sleeper]
command = ["sleep", "1000"]
"""
    dynorch("up", "-d", dynorch.file(second, "side.toml"))
    assert dynorch.daemon_pid() == daemon
    dynorch("down", "agg")
    assert [t["name"] for t in dynorch.status()["topologies"]] == ["side"]
    dynorch("down")
    dynorch("status", code=3)


def request(dynorch, path: str, body: dict | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(
        dynorch.url + path, data=data, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(call, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_killed_pid_is_really_ours(dynorch):
    """The pid that `status` names is the worker's main process."""
    dynorch("up", "-d", dynorch.file(AGG))
    pid = dynorch.pid("worker")
    os.kill(pid, signal.SIGKILL)

    def back():
        replica = dynorch.replica("worker")
        assert replica["phase"] == "ready"
        assert replica["restarts"] == 1
        return "SIGKILL" in replica["reason"]

    eventually(back, within_s=20)
    assert request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "x"})[0] == 200


def test_what_is_listed_answers_from_the_first_moment_on(dynorch):
    """Asked without a pause while the only worker starts, and while it restarts."""
    answers: list[tuple[bool, int]] = []

    def asked(count: int) -> bool:
        listed = json.loads(request(dynorch, "/v1/models")[1])["data"]
        answers.append((bool(listed), request(dynorch, "/v1/completions", ASK)[0] if listed else 0))
        return answers.count((True, 200)) >= count

    up = dynorch.popen("up", "-d", dynorch.file(AGG + 'sim = { startup = "1s" }\n'))
    eventually(lambda: "agg/frontend-0 ready" in dynorch.said(), within_s=30)
    eventually(lambda: asked(20), within_s=30)
    assert up.wait(timeout=30) == 0
    restart = dynorch.popen("restart", "agg/worker")
    eventually(lambda: asked(40) and restart.poll() is not None, within_s=30)
    assert restart.returncode == 0
    assert dynorch.replica("worker")["incarnation"] == 2
    assert set(answers) <= {(False, 0), (True, 200)}


def test_a_port_that_a_stranger_has_is_refused_with_his_pid_and_without_a_wait(dynorch):
    file = dynorch.file(AGG)
    before_s = children_s()
    with socket.create_server(("127.0.0.1", dynorch.port)):
        told = dynorch("up", "-d", file, code=1).stderr
    assert f"t.toml:5: frontend.port: port {dynorch.port} is in use by pid {os.getpid()}" in told
    assert children_s() - before_s < 2.0  # of a processor; this machine may be busy
    eventually(lambda: dynorch("status", code=None).returncode == 3, within_s=30)


def children_s() -> float:
    """What our children that have ended had of the processors."""
    spent = os.times()
    return spent.children_user + spent.children_system
