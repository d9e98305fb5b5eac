"""`up` on a file whose plain commands serve other models than before, or somewhere else.

None of their processes is touched, and nobody else's request fails.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import free_port
from tests.e2e.disagg import ask
from tests.e2e.frontend_stage import read_until
from tests.e2e.test_serves import COMPLETIONS, ROOT, get, stream
from tests.e2e.traffic import Traffic
from tests.eventually import eventually

HEAD = """
name = "two"
model = "tiny"
[frontend]
port = {port}
"""
WORKER = """
[roles.worker]
engine = "sim"
sim = { startup = "50ms", step = "2ms" }
"""
COMMAND = """
[processes.NAME]
command = ["PYTHON", "-m", "tests.e2e.openai_server", "PORT", "theirs", "LOG"]
cwd = "ROOT"
"""


class Servers:
    """A simulated worker and two servers that are up; what the file says they serve, changes."""

    def __init__(self, dynorch, worker: str = WORKER) -> None:
        self.dynorch = dynorch
        self.worker = worker
        taken: set[int] = {dynorch.port}
        self.ports: dict[str, int] = {}
        for name in ("one", "other"):
            found = (p for p in iter(free_port, None) if 1024 <= p <= 49151 and p not in taken)
            self.ports[name] = next(found)
            taken.add(self.ports[name])
        self.up({})

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def log(self, name: str) -> Path:
        return self.dynorch.root / f"{name}.log"

    def up(self, serves: dict[str, tuple[str, list[str]]], worker: str = "") -> str:
        """Apply the file in which these serve: by name, whose URL they name, and the models."""
        text = HEAD + (worker or self.worker)
        for name, port in self.ports.items():
            if name == "nobody":
                continue
            text += COMMAND.replace("NAME", name).replace("LOG", str(self.log(name)))
            text = text.replace("PORT", str(port))
            if name in serves:
                where, models = serves[name]
                text += f'serves = {{ url = "{self.url(where)}", models = {json.dumps(models)} }}\n'
        text = text.replace("PYTHON", sys.executable).replace("ROOT", str(ROOT))
        return self.dynorch("up", "-d", self.dynorch.file(text)).stdout

    def answers(self, model: str) -> int:
        return ask(self.dynorch.port, COMPLETIONS, {"model": model, "prompt": "x"}).status

    def listed(self) -> set[str]:
        return {card["id"] for card in get(self.dynorch.port, "/v1/models")["data"]}

    def asked(self, name: str) -> int:
        lines = self.log(name).read_text().splitlines() if self.log(name).exists() else []
        return sum("/v1/completions" in line for line in lines)

    def lives(self) -> dict[str, int]:
        topology = self.dynorch.topology()
        return {
            worker["id"]: worker["pid"]
            for role in [*topology["roles"], *topology["processes"]]
            for replica in role["replicas"]
            for worker in replica["workers"]
        }


def test_serves_is_added_changed_and_removed_under_traffic(dynorch):
    servers = Servers(dynorch)
    before = servers.lives()
    assert (servers.answers("theirs"), servers.listed()) == (404, {"tiny"})
    with Traffic(dynorch.url) as traffic:
        said = servers.up({"one": ("one", ["theirs"])})
        assert "one" in said
        assert "restart" not in said
        assert (servers.answers("theirs"), servers.asked("one")) == (200, 1)
        assert servers.listed() == {"tiny", "theirs"}
        traffic.go_on()

        servers.up({"one": ("one", ["ours", "mine"])})
        assert [servers.answers(name) for name in ("theirs", "ours", "mine")] == [404, 200, 200]
        assert servers.listed() == {"tiny", "ours", "mine"}
        assert dynorch.topology()["models"] == ["mine", "ours", "tiny"]
        traffic.go_on()

        servers.up({})
        assert [servers.answers(name) for name in ("ours", "mine")] == [404, 404]
        assert servers.listed() == {"tiny"}
        traffic.go_on()
    assert traffic.failures == []
    assert servers.lives() == before
    assert servers.asked("one") == 3


def test_a_server_that_serves_elsewhere_keeps_what_it_has_begun(dynorch):
    servers = Servers(dynorch)
    servers.up({"one": ("one", ["theirs"])})
    before = servers.lives()
    with Traffic(dynorch.url) as traffic, stream(dynorch.port, "half") as begun:
        read_until(begun, b'"2"}]}\n\n')
        servers.up({"one": ("other", ["theirs"])})
        assert (servers.answers("theirs"), servers.asked("other")) == (200, 1)
        # Nothing more comes of it for now, but it wasn't broken off.
        begun.settimeout(0.2)
        with pytest.raises(TimeoutError):
            begun.recv(1)
        traffic.go_on()
    assert traffic.failures == []
    assert servers.asked("one") == 1
    assert servers.lives() == before


def test_who_serves_where_nobody_listens_holds_up_nobody_else(dynorch):
    servers = Servers(dynorch)
    servers.ports["nobody"] = free_port()
    with Traffic(dynorch.url) as traffic:
        servers.up({"one": ("nobody", ["theirs"])})
        answer = ask(dynorch.port, COMPLETIONS, {"model": "theirs", "prompt": "x"})
        assert answer.status == 503
        assert "two/one-0.0#1 can't be reached" in answer.text
        servers.up({"one": ("nobody", ["theirs"])}, WORKER.replace("2ms", "1ms"))
        assert dynorch.replica("worker")["incarnation"] == 2
        servers.up({"one": ("one", ["theirs"])}, WORKER.replace("2ms", "1ms"))
        assert servers.answers("theirs") == 200
        traffic.go_on()
    assert traffic.failures == []


def test_what_is_served_outlives_the_daemon(dynorch):
    servers = Servers(dynorch)
    servers.up({"one": ("one", ["theirs"])})
    dynorch.kill_daemon()
    servers.up({"one": ("one", ["ours"])})
    assert [servers.answers(name) for name in ("theirs", "ours")] == [404, 200]
    dynorch.kill_daemon()
    assert [servers.answers(name) for name in ("theirs", "ours")] == [404, 200]


def test_a_frontend_comes_with_the_first_who_serves_and_goes_with_the_last(dynorch):
    servers = Servers(dynorch, worker="")
    before = servers.lives()
    servers.up({"one": ("one", ["theirs"])})
    assert servers.answers("theirs") == 200
    servers.up({})
    eventually(lambda: servers.lives() == before)
