"""A disaggregated topology beside an aggregated one of the same simulated model, whose answers are
what the other's must be. The simulated engine goes on from what it finds in its KV blocks, so a
wrong block is a wrong answer.
"""

import http.client
import json
import threading
from typing import Any

from tests.e2e.conftest import Dynorch, free_port
from tests.eventually import eventually

QUICK = 'restart = { backoff-initial = "20ms", backoff-max = "20ms" }'
REFERENCE = """
name = "ref"
model = "tiny"
[frontend]
port = REFERENCE
[roles.worker]
engine = "sim"
sim = { startup = "0s", max-model-len = 1024, TODAY }
"""
TOPOLOGY = """
name = "dg"
model = "tiny"
[frontend]
port = {port}
retries = 3
[roles.prefill]
kind = "prefill"
replicas = PREFILLS
engine = "sim"
sim = { startup = "0s", max-model-len = 1024, kv-blocks = 64, TODAY }
QUICK
[roles.decode]
kind = "decode"
replicas = DECODES
engine = "sim"
sim = { startup = "0s", max-model-len = 1024, DECODE }
QUICK
[kv-transfer]
connector = "nixl"
KV
"""
VARYING = ("id", "created", "kv_transfer_params")


class Answer:
    """What came back, without what differs from run to run."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.text = body.decode()

    @property
    def plain(self) -> Any:
        """The answer, or its events, comparable."""
        if not self.text.startswith("data: "):
            return _plain(json.loads(self.text))
        events = [line[6:] for line in self.text.splitlines() if line.startswith("data: ")]
        return [_plain(json.loads(one)) if one.startswith("{") else one for one in events]


class Later(threading.Thread):
    """An answer that is still to come."""

    def __init__(self, port: int, path: str, body: dict) -> None:
        super().__init__(daemon=True)
        self._arguments = (port, path, body)
        self.answer: Answer | None = None
        self.first = threading.Event()
        self.start()

    def run(self) -> None:
        self.answer = ask(*self._arguments, self.first)

    def came(self, within_s: float = 60) -> Answer:
        self.join(within_s)
        assert self.answer is not None, "no answer came"
        return self.answer


class Pair:
    """Both topologies, up."""

    def __init__(
        self,
        dynorch: Dynorch,
        *,
        prefills: int = 1,
        decodes: int = 1,
        kv: str = "",
        decode: str = "",
        today: str = "",
    ) -> None:
        self.dynorch = dynorch
        self.reference = next(p for p in iter(free_port, None) if 1024 <= p <= 49151)
        text = TOPOLOGY.replace("PREFILLS", str(prefills)).replace("DECODES", str(decodes))
        text = text.replace("KV\n", kv + "\n").replace("QUICK", QUICK)
        text = text.replace("DECODE", decode or "faults = []")
        dated = f'today = "{today}"' if today else "faults = []"
        self.file = dynorch.file(text.replace("TODAY", dated), "dg.toml")
        reference = REFERENCE.replace("REFERENCE", str(self.reference))
        dynorch("up", "-d", dynorch.file(reference.replace("TODAY", dated), "r.toml"))
        dynorch("up", "-d", self.file)

    def ask(self, path: str, body: dict) -> Answer:
        return ask(self.dynorch.port, path, body)

    def later(self, path: str, body: dict) -> Later:
        return Later(self.dynorch.port, path, body)

    def expected(self, path: str, body: dict) -> Any:
        answer = ask(self.reference, path, body)
        assert answer.status == 200, answer.text
        return answer.plain

    def pid(self, role: str, index: int = 0) -> int:
        return self._replica(role, index)["workers"][0]["pid"]

    def ready(self, role: str, index: int = 0, life: int = 1) -> None:
        """Wait until this or a later life of a replica is routable, for the frontend too."""

        def is_ready() -> bool:
            replica = self._replica(role, index)
            topology = self.dynorch.topology("dg")
            return (
                replica["routable"]
                and replica["incarnation"] >= life
                and topology["health"] == "ready"
            )

        eventually(is_ready, within_s=30)

    def life(self, role: str, index: int = 0) -> int:
        return self._replica(role, index)["incarnation"]

    def metric(self, line: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.dynorch.port, timeout=20)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = [one for one in text.splitlines() if one.startswith(line + " ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    def routable(self, role: str) -> int:
        """How many workers of a role the frontend can use."""
        connection = http.client.HTTPConnection("127.0.0.1", self.dynorch.port, timeout=20)
        connection.request("GET", "/health")
        roles = json.loads(connection.getresponse().read())["roles"]
        connection.close()
        return roles.get(role, {}).get("routable", 0)

    def used(self) -> float:
        """Tickets that went to a decode worker."""
        return self.metric('dynorch_frontend_tickets_total{fate="used"}')

    def _replica(self, role: str, index: int) -> dict:
        roles = self.dynorch.topology("dg")["roles"]
        replicas = next(one for one in roles if one["name"] == role)["replicas"]
        return next(one for one in replicas if one["index"] == index)


def ask(port: int, path: str, body: dict, first: threading.Event | None = None) -> Answer:
    """Ask; `first` is set when the answer has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            "POST", path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if first is not None:
            first.set()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def _plain(data: dict) -> dict:
    usage = data.get("usage")
    if usage:
        usage = {key: value for key, value in usage.items() if key != "prompt_tokens_details"}
    return {key: value for key, value in data.items() if key not in VARYING} | {"usage": usage}


def prompt(number: int, words: int = 30) -> dict:
    """A completion whose prompt no other number has, not even in its beginning."""
    text = " ".join(f"{number}.{word}" for word in range(words))
    return {"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0}
