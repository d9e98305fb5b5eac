"""Two roles on one GPU: placed together, started in turn, each with its part of the memory."""

import json
import os
import signal

import pytest

from tests.e2e import gpus

HALVES = """
name = "halves"
model = "m"
[gpu]
interval = "50ms"
[restart]
backoff-initial = "50ms"
[frontend]
port = {port}
[roles.a]
engine = "sim"
gpus = 0.5
sim = { pinned = true, startup = "400ms" }
[roles.b]
engine = "sim"
gpus = 0.5
sim = { pinned = true, startup = "400ms" }
"""


@pytest.fixture
def fake(dynorch):
    """One GPU that exists in a file."""
    return gpus.given(dynorch, 1)


def test_two_halves_share_a_gpu_and_neither_starts_into_the_others_memory(dynorch, fake):
    dynorch("up", "-d", dynorch.file(HALVES))
    first = {role: dynorch.pid(role) for role in "ab"}
    assert [dynorch.replica(role)["workers"][0]["gpus"] for role in "ab"] == [["0"], ["0"]]
    began = [
        (event["subject"], event["phase"])
        for event in map(json.loads, dynorch("events", "--json").stdout.splitlines())
        if event["what"] == "phase-changed" and event["phase"] in {"starting", "ready"}
        and "frontend" not in event["subject"]
    ]  # fmt: skip
    assert began == [
        ("halves/a-0", "starting"), ("halves/a-0", "ready"),
        ("halves/b-0", "starting"), ("halves/b-0", "ready"),
    ]  # fmt: skip

    fake.hold(0, 43.0)
    os.kill(first["a"], signal.SIGKILL)
    # 0.46 of 80 GiB, and 256 MiB for the CUDA context of the newcomer; 37.0 GiB are free.
    gpus.waits(dynorch, "a", "37.0 GiB are needed")
    fake.hold(0, 42.9)
    assert gpus.comes_to(dynorch, "a")["incarnation"] == 2
    assert dynorch.pid("b") == first["b"]


def test_a_third_half_is_refused_with_who_has_the_others(dynorch, fake):
    dynorch("up", "-d", dynorch.file(HALVES))
    third = HALVES.replace("halves", "third").replace("{port}", str(dynorch.port + 1))
    done = dynorch("up", "-d", dynorch.file(third, "third.toml"), code=1)
    said = "no GPU has 0.5 of itself left: halves/a-0.0 has 0.5 of 0; halves/b-0.0 has 0.5 of 0"
    assert said in done.stderr
