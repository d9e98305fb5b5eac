"""Real vLLM under a daemon of its own: for a module of tests, and a look at its processes."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import zmq
from openai import OpenAI

from orchestrator.host.rundir import RunDir
from orchestrator.wire import plane
from orchestrator.wire.ids import LifeId
from tests.e2e.conftest import Dynorch, running
from tests.e2e.worker import Frontend

SHM = Path("/dev/shm")


@contextlib.contextmanager
def deployed(text: str) -> Iterator[Dynorch]:
    """Bring a topology up; it is down at the end. Its file is `vllm_file`."""
    with running() as dynorch:
        # A home of its own would compile everything anew.
        dynorch.env["HOME"] = os.environ.get("HOME", "/root")
        # Threads that wait spin, and the engines here outnumber the cores.
        dynorch.env["OMP_NUM_THREADS"] = "1"
        dynorch.vllm_file = dynorch.file(text)
        dynorch("up", "-d", dynorch.vllm_file, timeout=300)
        yield dynorch


def toml_lines(flags: dict) -> str:
    """The body of a role's `vllm` table."""
    return "\n".join(f"{key} = {toml(value)}" for key, value in flags.items())


def toml(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def client_of(served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120)


def tree(main: int) -> dict[int, str]:
    """Living processes of the worker's session, by pid, with their names."""
    session = stat(main)[3]
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            try:
                if stat(pid)[3] == session and stat(pid)[0] not in "ZX":
                    found[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def mapped(pids) -> set[Path]:
    """Shared memory that these processes map; other programs' isn't our business."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if f"{SHM}/" in line:
                    found.add(Path(line.split(maxsplit=5)[5].removesuffix(" (deleted)")))
    return found


def part(worker: dict, title: str) -> int:
    """The pid of one of its processes: main, or the one that calls itself by this title."""
    found = [pid for pid, name in tree(worker["pid"]).items() if title in name]
    assert title == "main" or found, f"{title} isn't there"
    return worker["pid"] if title == "main" else found[0]


def ask_worker(served, life: str, path: str, body: dict | None = None, within_s: float = 5):
    """Ask the worker itself, as the frontend does; its status, or None if it never answers."""
    with contextlib.suppress(AssertionError):
        return answer_of(served, life, path, body, within_s)[0]


def answer_of(served, life: str, path: str, body: dict | None = None, within_s: float = 60):
    """Status and body of one worker's answer; AssertionError if it has none in time."""
    endpoint = RunDir(served.run_dir).life(LifeId.parse(life)) / "p"
    context = zmq.Context()
    client = Frontend(context, f"ipc://{endpoint}")
    try:
        client.open(1, json.dumps(body or {}).encode(), path, "GET" if body is None else "POST")
        head, *rest = client.end(1, within_s)
        return head.status, b"".join(item.data for item in rest if isinstance(item, plane.Chunk))
    finally:
        client.close()
        context.term()
