"""Simulated disaggregation and lockstep through real processes: the same answers, come what may."""

import json
import os
import signal
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

import tests.asgi
from orchestrator.host.rundir import RunDir
from orchestrator.wire import plane
from orchestrator.wire.ids import LifeId
from tests.e2e.worker import Frontend
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
PAIR = """
name = "d"
model = "m"
restart = {{ backoff-initial = "20ms", backoff-max = "50ms" }}
[frontend]
port = {{port}}
[roles.alone]
model = "alone"
sim = {{ startup = "0s", step = "1ms" }}
[roles.prefill]
kind = "prefill"
replicas = {prefills}
sim = {{ startup = "0s", step = "1ms"{prefill} }}
[roles.decode]
kind = "decode"
replicas = {decodes}
{gang}
sim = {{ startup = "0s", step = "1ms"{decode} }}
{more}
[kv-transfer]
connector = "nixl"
on-failure = "{policy}"
"""
PROMPT = "what is to be prefilled, and then answered"
MESSAGES = [{"role": "user", "content": PROMPT}]
REQUESTS = [
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 40, "logprobs": 3}),
    ("/v1/completions", {"prompt": [PROMPT, PROMPT + "?", "b"], "max_tokens": 5, "echo": True}),
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "n": 3}),
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 30, "n": 2}),
]


def up(dynorch, policy="recompute", **given):
    parts = dict.fromkeys(("prefill", "decode", "gang", "more"), "")
    parts |= {"prefills": 1, "decodes": 1} | given
    text = PAIR.format(policy=policy, **parts)
    dynorch("up", "-d", "--engine", "sim", dynorch.file(text))


def post(dynorch, path, body, model, within_s=60):
    """The whole answer and its headers."""
    data = json.dumps(body | {"model": model, "temperature": 0}).encode()
    request = urllib.request.Request(dynorch.url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=within_s) as answer:
        return json.loads(answer.read()), answer.headers


def said(dynorch, path, body, model):
    """What a client can see of the model in a whole answer, or in all events for each choice."""
    if not body.get("stream"):
        return post(dynorch, path, body, model)[0]["choices"]
    data = json.dumps(body | {"model": model}).encode()
    request = urllib.request.Request(dynorch.url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = answer.read().decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    choices = [choice for line in lines[:-2] for choice in json.loads(line[6:])["choices"]]
    return sorted(choices, key=lambda choice: choice["index"])


def right(dynorch, path="/v1/completions", body=REQUESTS[0][1]):
    """Whether the pair answers as an engine does that did it all alone."""
    return said(dynorch, path, body, "m") == said(dynorch, path, body, "alone")


def figures(dynorch, worker: str) -> dict[str, float]:
    """What an engine counts, asked through its request plane."""
    folder = RunDir(dynorch.run_dir).life(LifeId.parse(worker))
    context = zmq.Context()
    try:
        client = Frontend(context, f"ipc://{folder}/p")
        client.open(1, b"", "/metrics", "GET")
        items = client.end(1)
    finally:
        context.destroy(linger=0)
    text = b"".join(item.data for item in items if isinstance(item, plane.Chunk)).decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.partition("{")[0]: float(value) for name, value in lines if "_bucket" not in name}


def workers(dynorch, role) -> list[dict]:
    roles = {each["name"]: each for each in dynorch.topology()["roles"]}
    return [worker for replica in roles[role]["replicas"] for worker in replica["workers"]]


def transfers(dynorch) -> list[float]:
    """How many each decode worker has made."""
    name = "vllm:nixl_xfer_time_seconds_count"
    return [figures(dynorch, worker["id"])[name] for worker in workers(dynorch, "decode")]


def back(dynorch, role, incarnation) -> None:
    def served():
        replica = dynorch.replica(role)
        return replica["routable"] and replica["incarnation"] == incarnation

    eventually(served, within_s=60)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_through_two_workers_are_those_of_one(dynorch, stream):
    up(dynorch)
    for path, body in REQUESTS:
        asked = body | {"stream": stream}
        assert right(dynorch, path, asked), asked
    [made] = transfers(dynorch)
    assert made == 2, "a list of prompts, and several answers to one, are decode's alone"
    [prefill] = workers(dynorch, "prefill")
    counted = figures(dynorch, prefill["id"])
    assert counted["vllm:nixl_num_kv_expired_reqs_total"] == 0
    assert counted["vllm:nixl_num_notifications_after_expiry_total"] == 0
    assert counted["dynorch_sim_kv_blocks_free"] == 16_384, "nothing is kept for nobody"


SHIPPED = [path.stem for path in sorted((ROOT / "topologies").glob("*.toml"))]


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith(("d", "two"))])
def test_what_is_shipped_runs_simulated(dynorch, name):
    text = (ROOT / f"topologies/{name}.toml").read_text()
    if "[frontend]" not in text:
        text += "\n[frontend]\n"
    file = dynorch.file(text.replace("[frontend]\n", "[frontend]\nport = {port}\n"))
    dynorch("up", "-d", "--engine", "sim", file)
    path, body = REQUESTS[0]
    truth = tests.asgi.ask(path, body).json["choices"]
    with urllib.request.urlopen(f"{dynorch.url}/v1/models", timeout=60) as answer:
        models = [each["id"] for each in json.loads(answer.read())["data"]]
    asked = [post(dynorch, path, body, model) for model in models for _ in range(4)]
    assert all(answer["choices"] == truth for answer, _headers in asked)
    if name.startswith("disagg"):
        assert all(headers["x-dynorch-prefill"] for _answer, headers in asked)
        assert sum(transfers(dynorch)) == len(asked)


CRASH = ', faults = [{ fault = "crash", after-transfers = 2, times = 1 }]'
SPARE = '[roles.spare]\nkind = "decode"\nsim = { startup = "0s", step = "1ms" }'


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("policy", ["recompute", "fail"])
def test_a_worker_that_dies_in_the_middle_of_a_transfer(dynorch, role, policy):
    up(dynorch, policy, more=SPARE, **{role: CRASH})
    for _ in range(6):
        assert right(dynorch)
    back(dynorch, role, 2)
    assert right(dynorch)


@pytest.mark.parametrize("policy", ["recompute", "fail"])
def test_a_transfer_that_fails(dynorch, policy):
    up(dynorch, policy, decode=', faults = [{ fault = "transfer-fail" }]')
    assert right(dynorch)
    [worker] = workers(dynorch, "decode")
    counted = figures(dynorch, worker["id"])
    assert counted["vllm:nixl_num_failed_transfers_total"] == 1
    assert counted["vllm:nixl_xfer_time_seconds_count"] == (0 if policy == "recompute" else 1)


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        ({"decode": ', faults = [{ fault = "transfer-stall" }]'}, False),
        ({"prefill": ', faults = [{ fault = "transfer-stall" }]'}, False),
        ({"prefill": ', faults = [{ fault = "drop-answer" }]'}, True),
    ],
    ids=["decode stalls", "prefill stalls", "answer lost"],
)
def test_a_client_that_waits_no_longer_lets_the_blocks_go(dynorch, fault, kept):
    """At once, unless the way to them was lost: then their lease must end."""
    up(dynorch, **fault)
    with pytest.raises(TimeoutError):
        post(dynorch, *REQUESTS[0], "m", within_s=2)
    [prefill] = workers(dynorch, "prefill")

    def as_expected():
        free = figures(dynorch, prefill["id"])["dynorch_sim_kv_blocks_free"]
        return (free < 16_384) == kept

    eventually(as_expected)
    assert right(dynorch)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_kill_nine_under_load_and_every_answer_is_right(dynorch, role):
    up(dynorch, prefills=2, decodes=2)
    truth = said(dynorch, "/v1/completions", REQUESTS[0][1], "alone")
    others = {w["id"]: w["pid"] for r in ("prefill", "decode") for w in workers(dynorch, r)}
    victim = workers(dynorch, role)[0]

    def ask(number):
        if number == 20:
            os.kill(victim["pid"], signal.SIGKILL)
        return said(dynorch, *REQUESTS[0], "m")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(60)))
    assert all(answer == truth for answer in answers)
    back(dynorch, role, 2)
    del others[victim["id"]]
    now = {w["id"]: w["pid"] for r in ("prefill", "decode") for w in workers(dynorch, r)}
    assert others.items() <= now.items()


def test_ranks_step_together_and_rest_together(dynorch):
    dynorch("up", "-d", "--engine", "sim", dynorch.file("""
name = "d"
model = "m"
[frontend]
port = {port}
[roles.decode]
data-parallel = 3
sim = { startup = "0s", step = "1ms" }
"""))  # fmt: skip
    for _ in range(4):
        said(dynorch, *REQUESTS[0], "m")

    def counts():
        found = [figures(dynorch, worker["id"]) for worker in workers(dynorch, "decode")]
        return [(int(f["dynorch_sim_steps_total"]), int(f["dynorch_sim_dummy_steps_total"]))
                for f in found]  # fmt: skip

    before = counts()
    assert len({steps for steps, _dummies in before}) == 1
    assert all(dummies >= 40 for _steps, dummies in before), "each stepped for another"
    assert counts() == before, "nobody asks, nothing turns"


def test_decode_ranks_in_lockstep_fetch_from_one_prefill(dynorch):
    up(dynorch, gang="data-parallel = 2")
    for _ in range(6):
        assert right(dynorch)
    assert sorted(transfers(dynorch)) == [3, 3]
    ports = {worker["ports"]["side-channel"] for worker in workers(dynorch, "decode")}
    assert len(ports) == 2
    os.kill(workers(dynorch, "decode")[1]["pid"], signal.SIGKILL)
    back(dynorch, "decode", 2)
    assert right(dynorch)
    assert dynorch.replica("prefill")["incarnation"] == 1
