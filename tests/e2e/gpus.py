"""GPUs of a test's own: a file that the daemon asks instead of a driver."""

import json
import os
import subprocess
import sys
from pathlib import Path

from orchestrator.host.tagged import make_nonce
from orchestrator.host.title import entry
from tests.eventually import eventually

GIB = 2**30
IDLE = round(0.3 * GIB)
HOLD = [sys.executable, "-c", "import time; time.sleep(3600)"]
"""A process that does nothing but be there."""

TWO = """
name = "two"
[gpu]
interval = "50ms"
[restart]
backoff-initial = "50ms"
[processes.a]
command = ["sleep", "3600"]
gpus = 1
[processes.b]
command = ["sleep", "3600"]
gpus = 1
"""


class FakeGpus:
    """What the driver would say, as a file; written whole, so that no reader sees half of it."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.gpus = [
            {"uuid": f"GPU-{index}-fake", "total_bytes": 80 * GIB, "used_bytes": IDLE}
            for index in range(count)
        ]
        self.write()

    def write(self) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps({"gpus": self.gpus}))
        draft.rename(self.path)

    def set(self, index: int = 0, **facts) -> None:
        self.gpus[index] |= facts
        self.write()

    def hold(self, index: int = 0, gib: float = 40.0, pid: int | None = None) -> None:
        """Somebody uses it: `pid`, or nobody that can be seen."""
        users = [] if pid is None else [{"pid": pid, "used_bytes": round(gib * GIB)}]
        self.set(index, used_bytes=round(gib * GIB), users=users)

    def free(self, index: int = 0) -> None:
        self.set(index, used_bytes=IDLE, users=[], trouble="", lost=False)


def given(dynorch, count: int) -> FakeGpus:
    """Let a dynorch see so many of them."""
    fake = FakeGpus(dynorch.root / "gpus.json", count)
    dynorch.env["DYNORCH_GPU_PROVIDER"] = f"fake:{fake.path}"
    return fake


def waits(dynorch, role: str, *words: str) -> dict:
    """Until it waits, with these words in its reason."""

    def condition():
        replica = dynorch.replica(role)
        assert replica["phase"] == "waiting", replica
        missing = [word for word in words if word not in replica["reason"]]
        assert not missing, f"{missing} not in {replica['reason']}"
        return replica

    return eventually(condition, within_s=30)


def comes_to(dynorch, role: str, phase: str = "ready") -> dict:
    """Until it is in this phase."""

    def condition():
        replica = dynorch.replica(role)
        return replica if replica["phase"] == phase else None

    return eventually(condition, within_s=30)


def stranger(env: dict[str, str]) -> subprocess.Popen:
    """Another program of this user."""
    return subprocess.Popen(HOLD, env=env, start_new_session=True)


def orphan(env: dict[str, str], run_dir: Path, life: str) -> subprocess.Popen:
    """A process of an earlier life, whose records are all lost."""
    name, _, tag = entry(f"{life}/{make_nonce(run_dir, life)}").decode().partition("=")
    return subprocess.Popen(HOLD, env=env | {name: tag}, start_new_session=True)


def end(process: subprocess.Popen) -> None:
    """End one of those; whether it was still there."""
    process.kill()
    process.wait()


def visible_gpus(pid: int) -> str:
    """The GPUs that a process was given, from its own environment."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(one.split(b"=", 1) for one in environ if b"=" in one)
    assert found[b"CUDA_DEVICE_ORDER"] == b"PCI_BUS_ID"
    return os.fsdecode(found[b"CUDA_VISIBLE_DEVICES"])
