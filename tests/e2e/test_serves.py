"""A plain command that is an OpenAI server, behind the same frontend as a simulated worker."""

import http.client
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port
from tests.e2e.disagg import ask
from tests.e2e.frontend_stage import read_all, read_until
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
PROCESS = """
[processes.other]
command = ["PYTHON", "-m", "tests.e2e.openai_server", "UPSTREAM", "theirs", "LOG"]
cwd = "ROOT"
ready = { http = "http://127.0.0.1:UPSTREAM/health" }
serves = { url = "http://127.0.0.1:UPSTREAM", models = "theirs" }
restart = { backoff-initial = "50ms", backoff-max = "50ms" }
"""
HEAD = 'name = "two"\nmodel = "tiny"\n[frontend]\nport = {port}\n'
WORKER = '[roles.worker]\nengine = "sim"\n'
COMPLETIONS = "/v1/completions"


def get(port: int, path: str) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    found = json.loads(connection.getresponse().read())
    connection.close()
    return found


def stream(port: int, prompt: str) -> socket.socket:
    body = json.dumps({"model": "theirs", "prompt": prompt, "stream": True}).encode()
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return sock


class Two:
    """The topology, up, and what the server wrote down."""

    def __init__(self, dynorch, worker: str = WORKER) -> None:
        self.dynorch = dynorch
        self.log = dynorch.root / "server.log"
        port = next(p for p in iter(free_port, None) if 1024 <= p <= 49151)
        text = HEAD + worker + PROCESS.replace("UPSTREAM", str(port)).replace("LOG", str(self.log))
        text = text.replace("PYTHON", sys.executable).replace("ROOT", str(ROOT))
        dynorch("up", "-d", dynorch.file(text))

    def ask(self, **body):
        return ask(self.dynorch.port, COMPLETIONS, {"model": "theirs"} | body)

    def get(self, path: str) -> dict:
        return get(self.dynorch.port, path)

    def stream(self, prompt: str) -> socket.socket:
        return stream(self.dynorch.port, prompt)

    def received(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def unchunked(data: bytes) -> bytes:
    """Return a chunked body that is complete."""
    whole = b""
    while (size := int(data.partition(b"\r\n")[0], 16)) > 0:
        start = data.index(b"\r\n") + 2
        whole, data = whole + data[start : start + size], data[start + size + 2 :]
    assert data == b"0\r\n\r\n"
    return whole


@pytest.fixture
def two(dynorch):
    return Two(dynorch)


def test_both_are_served_side_by_side(two):
    assert {card["id"] for card in two.get("/v1/models")["data"]} == {"tiny", "theirs"}
    assert two.dynorch.topology()["models"] == ["theirs", "tiny"]
    answer = two.ask(prompt="hello", kv_transfer_params={"do_remote_prefill": True})
    assert (answer.status, answer.plain["choices"]) == (200, [{"text": "echo hello"}])
    assert answer.headers["x-dynorch-worker"] == "two/other-0.0#1"
    assert answer.headers["x-dynorch-engine"] == "http"
    assert ask(two.dynorch.port, COMPLETIONS, {"model": "tiny", "prompt": "x"}).status == 200
    sent = two.received()[-1]
    assert json.loads(sent["body"]) == {"model": "theirs", "prompt": "hello"}
    assert "kv_transfer_params" not in sent["body"]
    assert sent["headers"]["x-request-id"] == answer.headers["x-request-id"]


def test_streams_and_errors_come_as_they_are(two):
    with two.stream("x") as sock:
        data = read_all(sock)
    assert b"x-upstream: yes" in data
    assert data.count(b"data: ") == 4
    answer = two.ask(prompt="error")
    assert (answer.status, answer.plain["error"]["message"]) == (500, "no luck today")


def test_a_client_that_leaves_breaks_the_stream_off(two):
    with two.stream("hang") as sock:
        read_until(sock, b"data: ")
    eventually(lambda: "gone" in two.received())


def test_a_stream_that_is_cut_within_an_event_ends_with_whole_ones(two):
    with two.stream("half") as sock:
        first = read_until(sock, b'"2"}]}\n\n')
        os.kill(two.dynorch.pid("other"), signal.SIGKILL)
        body = unchunked((first + read_all(sock)).partition(b"\r\n\r\n")[2])
    *told, error, done, nothing = body.split(b"\n\n")
    assert told == [b'data: {"choices":[{"text":"%d"}]}' % number for number in (1, 2)]
    assert "two/other-0.0#1" in json.loads(error.removeprefix(b"data: "))["error"]["message"]
    assert (done, nothing) == (b"data: [DONE]", b"")


def test_so_does_one_that_ends_with_its_connection(two):
    """Then nothing but half an event tells that it was cut."""
    with two.stream("torn") as sock:
        body = unchunked(read_all(sock).partition(b"\r\n\r\n")[2])
    told, error, done, _nothing = body.split(b"\n\n")
    assert told == b'data: {"choices":[{"text":"1"}]}'
    assert "within an event" in json.loads(error.removeprefix(b"data: "))["error"]["message"]
    assert done == b"data: [DONE]"


def test_what_is_no_stream_of_events_is_passed_on_as_it_comes(two):
    with two.stream("binary") as sock:
        first = read_until(sock, b'"te')
        os.kill(two.dynorch.pid("other"), signal.SIGKILL)
        assert not (first + read_all(sock)).endswith(b"0\r\n\r\n")


def test_a_server_that_dies_comes_back(two):
    os.kill(two.dynorch.pid("other"), signal.SIGKILL)
    eventually(lambda: two.ask(prompt="again").status == 200, within_s=30)
    answer = two.ask(prompt="die")
    assert answer.status == 503
    assert "two/other-0" in answer.text
    eventually(lambda: two.ask(prompt="again").status == 200, within_s=30)


def test_a_topology_may_have_nothing_else(dynorch):
    alone = Two(dynorch, worker="")
    assert alone.ask(prompt="x").plain["choices"] == [{"text": "echo x"}]
    dynorch("stop", "two/other")
    answer = alone.ask(prompt="x")
    assert answer.status == 503
    assert "two/other-0 is stopped" in answer.text
