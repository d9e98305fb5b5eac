"""How soon a killed vLLM worker answers again, beside a cold start of vLLM's own server.

Both in one run on one machine, with one tiny model and the same flags, because absolute times say
more about the machine than about us. Through dynorch: `up -d`, then `kill -9` of the worker's main
process, of EngineCore and of the engine's worker, each time until a request over HTTP is answered.
With `--shape disagg` the same for prefill and decode, and an answer counts if both took part; with
`--shape dep` for two ranks of a mixture of experts, whose cold start is that of one lone engine.

    .venv-vllm/bin/python -m benchmarks.recovery [--shape agg|disagg|dep] [--rounds N] [--json]

Exit status 1 if the slowest recovery takes more than `RATIO_MAX` of the cold start.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import psutil
import tomli_w

from tests.eventually import eventually
from tests.vllm import tiny_model

RATIO_MAX = 0.15
ANSWER_S = 300.0
POLL_S = 0.02
NAME = "recovery"
MODEL = "tiny"
FLAGS = {
    "dtype": "float32",
    "enforce-eager": True,
    "kv-cache-memory-bytes": 64 << 20,
    "max-model-len": 512,
}


class Victim(NamedTuple):
    """A process: its role, member and title; without a title, the worker's main process."""

    role: str
    member: int = 0
    title: str = ""

    def __str__(self) -> str:
        return f"{self.role}'s {self.title or 'main process'}"


class Shape(NamedTuple):
    """`roles`: what each has beside what all have."""

    roles: dict[str, dict]
    victims: tuple[Victim, ...]
    more: dict
    moe: bool = False


PARTS = ("", "VLLM::EngineCore", "VLLM::Worker")
SHAPES = {
    "agg": Shape(
        {"worker": {"kind": "aggregated"}},
        tuple(Victim("worker", 0, each) for each in PARTS),
        {},
    ),
    "disagg": Shape(
        {kind: {"kind": kind} for kind in ("prefill", "decode")},
        tuple(Victim(role, 0, each) for role in ("prefill", "decode") for each in PARTS),
        {"kv-transfer": {"connector": "nixl"}},
    ),
    "dep": Shape(
        {"worker": {"kind": "aggregated", "data-parallel": 2}},
        (
            Victim("worker", 1),
            Victim("worker", 0, "VLLM::EngineCore"),
            Victim("worker", 1, "VLLM::Worker"),
            Victim("worker", 0, "VLLM::DPCoordinator"),
        ),
        {},
        moe=True,
    ),
}
DYNORCH = [sys.executable, "-m", "orchestrator.cli.main"]


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="kills of each process")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--shape", choices=SHAPES, default="agg")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    # Short: unix socket paths end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="dyn", dir="/tmp") as directory:
        work = Path(directory)
        model = tiny_model.make(work / "model", moe=shape.moe)
        cold_s = cold_start(work, model)
        up_s, recoveries = through_dynorch(work, model, shape, options.rounds)
    worst_s = max(seconds for each in recoveries.values() for seconds in each)
    result = {
        "cold_start_s": round(cold_s, 2),
        "up_s": round(up_s, 2),
        "recovery_s": {name: [round(s, 2) for s in each] for name, each in recoveries.items()},
        "ratio": round(worst_s / cold_s, 3),
    }
    print(json.dumps(result) if options.json else table(result))
    return 0 if result["ratio"] <= RATIO_MAX else 1


def table(result: dict) -> str:
    """The result for people."""
    lines = [
        f"{result['cold_start_s']:8.2f} s  cold start of vLLM's own server to its first answer",
        f"{result['up_s']:8.2f} s  dynorch up -d, zygote's imports included",
    ]
    for victim, each in result["recovery_s"].items():
        times = ", ".join(f"{seconds:.2f}" for seconds in each)
        lines.append(f"{max(each):8.2f} s  kill -9 of {victim} to the next answer ({times})")
    lines.append(f"{result['ratio']:8.3f}    slowest recovery / cold start (at most {RATIO_MAX})")
    return "\n".join(lines)


def cold_start(work: Path, model: Path) -> float:
    """Seconds from starting `vllm serve` to its first answer."""
    port, log = free_port(), work / "server.log"
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--model", str(model), "--served-model-name", MODEL]
    for flag, value in FLAGS.items():
        argv += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    began = time.monotonic()
    with log.open("wb") as out:
        server = subprocess.Popen(
            argv, env=environment(work), stdout=out, stderr=out, start_new_session=True
        )
    try:
        eventually(lambda: server.poll() is not None or answers(port), ANSWER_S, POLL_S)
        answered_s = time.monotonic() - began
        if server.poll() is not None:
            sys.exit(f"vLLM's own server exited:\n{log.read_text()[-3000:]}")
    finally:
        server.terminate()
        server.wait(60)
    return answered_s


def through_dynorch(
    work: Path, model: Path, shape: Shape, rounds: int
) -> tuple[float, dict[str, list[float]]]:
    """Seconds of `up`, and per victim seconds from its kill to the next answer."""
    port = free_port()
    file = topology(work, model, shape, port)
    recoveries: dict[str, list[float]] = {str(victim): [] for victim in shape.victims}
    began = time.monotonic()
    dynorch(work, "up", str(file), "-d")
    try:
        eventually(lambda: answers(port, shape), ANSWER_S, POLL_S)
        up_s = time.monotonic() - began
        for victim in shape.victims * rounds:
            recoveries[str(victim)].append(recovery(work, port, shape, victim))
    finally:
        dynorch(work, "down", NAME)
    return up_s, recoveries


def recovery(work: Path, port: int, shape: Shape, victim: Victim) -> float:
    """Kill one process of a worker's tree; seconds until a new incarnation answers."""
    before = incarnation(work, victim)
    process = psutil.Process(before["pid"])
    if victim.title:
        name = victim.title[:15]
        process = next(p for p in process.children(recursive=True) if p.name().startswith(name))
    began = time.monotonic()
    process.send_signal(signal.SIGKILL)
    # For a moment the engine may not know yet that a part of it is dead.
    eventually(lambda: not answers(port, shape), ANSWER_S, POLL_S)
    eventually(lambda: answers(port, shape), ANSWER_S, POLL_S)
    recovered_s = time.monotonic() - began
    after = incarnation(work, victim)
    assert after["pid"] != before["pid"], f"nothing was restarted: {after}"
    return recovered_s


def incarnation(work: Path, victim: Victim) -> dict:
    """The victim's worker as `dynorch status --json` tells it."""
    status = json.loads(dynorch(work, "status", "--json"))
    (running,) = [each for each in status["topologies"] if each["name"] == NAME]
    (role,) = [each for each in running["roles"] if each["name"] == victim.role]
    (replica,) = role["replicas"]
    return replica["workers"][victim.member]


def topology(work: Path, model: Path, shape: Shape, port: int) -> Path:
    """Write the topology's file."""
    common = {
        "engine": "vllm",
        "gpus": 0,
        "served-model-name": MODEL,
        "vllm": FLAGS,
        "restart": {"backoff-initial": "0s"},
    }
    content = {
        "name": NAME,
        "model": str(model),
        "frontend": {"port": port},
        "roles": {name: role | common for name, role in shape.roles.items()},
        **shape.more,
    }
    file = work / f"{NAME}.toml"
    file.write_text(tomli_w.dumps(content))
    return file


def dynorch(work: Path, *words: str) -> str:
    """Run one verb; its output."""
    done = subprocess.run(
        [*DYNORCH, *words], env=environment(work), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"dynorch {' '.join(words)} exited {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(work: Path) -> dict[str, str]:
    """The same for both sides; dynorch's directories are this run's own."""
    return {
        **os.environ,
        "DYNORCH_RUN_DIR": str(work / "run"),
        "DYNORCH_STATE_DIR": str(work / "state"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def answers(port: int, shape: Shape | None = None) -> bool:
    """Whether a completion of one token succeeds now, with prefill if the shape has it."""
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 1}).encode()
    headers = {"content-type": "application/json"}
    url = f"http://127.0.0.1:{port}/v1/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
            alone = shape is None or "prefill" not in shape.roles
            return response.status == 200 and (alone or "x-dynorch-prefill" in response.headers)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    """A port that was free a moment ago, below those that the kernel deals out."""
    for port in range(20_000 + os.getpid() % 10_000, 40_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    sys.exit("no free port")


if __name__ == "__main__":
    sys.exit(main())
