"""The frontend's own life: its port, its daemon's death, its stop, and its word to the daemon."""

import signal
import socket
import subprocess

import pytest

from orchestrator.wire import messages
from tests.e2e.frontend_stage import Stage, read_all
from tests.eventually import eventually


@pytest.fixture
def stage(tmp_path):
    with Stage(tmp_path) as it:
        yield it


def test_without_a_daemon_everything_goes_on(stage):
    stage.serve("a", "b")
    with stage.stream(gate="after", tokens=4) as sock:
        assert b" 200 " in sock.recv(65536).partition(b"\r\n")[0]
        stage.daemon.stop()
        assert stage.chat()[0] == 200
        stage.kill("a")
        assert {stage.chat()[1]["choices"][0]["message"]["content"] for _ in range(4)} == {"b"}
        status, health = stage.get("/health")
        assert status == 200
        assert "lost its connection" in health["models"]["m"]["reasons"][0]


def test_sigterm_lets_streams_finish(stage):
    stage.serve("a")
    process = stage.frontends[0]
    socks = [stage.stream(gate="after", tokens=4) for _ in range(10)]
    for sock in socks:
        assert b" 200 " in sock.recv(65536).partition(b"\r\n")[0]
    process.send_signal(signal.SIGTERM)
    eventually(lambda: stage.get("/health")[0] == 503)
    assert stage.get("/live")[0] == 200
    status, body = stage.chat()
    assert status == 503
    assert "is stopping" in body["error"]["message"]
    # The gate can't be opened through a frontend that takes no requests.
    second = stage.frontend(replica=1)
    stage.settled(2, second)
    eventually(lambda: stage.call("POST", "/stub/open-gate")[0] == 200)
    for sock in socks:
        assert read_all(sock).endswith(b"0\r\n\r\n")
        sock.close()
    assert process.wait(10) == 0


def test_a_drain_past_its_deadline_ends_visibly(stage):
    stage.serve("a")
    with stage.stream(hang_after=True) as sock:
        assert b" 200 " in sock.recv(65536).partition(b"\r\n")[0]
        stage.daemon.say("t/frontend-0.0#1", messages.Drain(deadline_s=0.2))
        end = read_all(sock)
        assert b"told to stop" in end
        assert b"data: [DONE]" in end
    assert stage.frontends[0].wait(10) == 0
    assert stage.daemon.said(messages.Drained)


def test_replicas_share_the_port_and_one_stops(stage):
    stage.serve("a")
    stage.settled(2, stage.frontend(replica=1))
    stage.frontends[0].send_signal(signal.SIGTERM)
    assert stage.frontends[0].wait(10) == 0
    assert {stage.chat()[0] for _ in range(10)} == {200}


def test_a_taken_port(stage):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", stage.port))
        sock.listen()
        life = stage.frontend(wait=False)
        assert stage.frontends[0].wait(15) == 64
    bye = stage.daemon.said(messages.Bye)[0]
    assert (bye.life, bye.code) == (life, "port-in-use")
    assert str(stage.port) in bye.text
    assert bye.text in stage.log()


def test_a_port_of_another_topology(stage):
    stage.serve("a")
    stage.frontend(wait=False, replica=1, topology="other")
    assert stage.frontends[1].wait(15) == 64
    assert "the frontend of topology 't'" in stage.daemon.said(messages.Bye)[0].text


def test_wrong_settings(stage):
    stage.frontend(wait=False, prot=1)
    assert stage.frontends[0].wait(15) == 64
    assert "prot" in stage.daemon.said(messages.Bye)[0].text


def test_sigterm_before_it_is_ready(stage):
    stage.daemon.table = None
    stage.frontend(wait=False)
    process = stage.frontends[0]
    eventually(lambda: stage.daemon.beats)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_the_daemon_learns_which_table_is_answering(stage):
    stage.serve("a")
    before = stage.daemon.table.version
    stage.worker("b")
    stage.workers["b"].send_signal(signal.SIGSTOP)
    version = stage.publish("a", "b")
    for _ in range(3):
        assert stage.chat()[1]["choices"][0]["message"]["content"] == "a"
    assert stage.daemon.beats["t/frontend-0.0#1"].routes_version == before
    stage.workers["b"].send_signal(signal.SIGCONT)
    stage.settled(version)
    assert {stage.chat()[1]["choices"][0]["message"]["content"] for _ in range(4)} == {"a", "b"}


def test_nothing_is_left_of_a_frontend(stage):
    stage.serve("a")
    pid = stage.frontends[0].pid
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, check=False
    )
    assert not children.stdout.strip()
    stage.frontends[0].send_signal(signal.SIGTERM)
    assert stage.frontends[0].wait(10) == 0
    with pytest.raises(ConnectionRefusedError):
        stage.get("/live")
