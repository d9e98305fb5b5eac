"""A whole dynorch in directories of its own, driven through its command line."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.worker import Daemon, Frontend, Worker
from tests.eventually import eventually
from workers.sim.main import main

COMMAND = [sys.executable, "-m", "orchestrator.cli.main"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Dynorch:
    """One run directory; `port` is free when the fixture is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "run"
        self.state_dir = root / "state"
        # Ports below the ephemeral range, as the topology demands.
        self.port = next(p for p in iter(free_port, None) if 1024 <= p <= 49151)
        self.spoken: list[IO[str]] = []
        self.env = dict(
            os.environ,
            DYNORCH_RUN_DIR=str(self.run_dir),
            DYNORCH_STATE_DIR=str(self.state_dir),
            HOME=str(root),
        )

    def file(self, text: str, name: str = "t.toml") -> Path:
        path = self.root / name
        path.write_text(text.replace("{port}", str(self.port)))
        return path

    def __call__(self, *args: object, timeout: float = 60, code: int | None = 0, **env: str):
        """Run a verb to its end; `code` is the expected exit status, None for any."""
        done = subprocess.run(
            [*COMMAND, *map(str, args)], env=self.env | env, capture_output=True, text=True,
            timeout=timeout, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def popen(self, *args: object) -> subprocess.Popen[bytes]:
        """Run a verb in the background; what it says goes to a file, see `said`."""
        self.spoken.append((self.root / f"said-{len(self.spoken)}").open("w"))
        return subprocess.Popen(
            [*COMMAND, *map(str, args)], env=self.env, stdin=subprocess.DEVNULL,
            stdout=self.spoken[-1], stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def said(self) -> str:
        """What the latest background verb has said so far."""
        return Path(self.spoken[-1].name).read_text()

    def status(self) -> dict:
        return json.loads(self("status", "--json", code=None).stdout)

    def topology(self, name: str | None = None) -> dict:
        return next(t for t in self.status()["topologies"] if name in (None, t["name"]))

    def replica(self, role: str, index: int = 0) -> dict:
        topology = self.topology()
        roles = [*topology["roles"], *topology["processes"]]
        replicas = next(r for r in roles if r["name"] == role)["replicas"]
        return next(r for r in replicas if r["index"] == index)

    def pid(self, role: str, index: int = 0) -> int:
        return self.replica(role, index)["workers"][0]["pid"]

    def engine_workers(self) -> list[dict]:
        """The engine workers of the topology, with what their last beats said."""
        return [
            worker
            for role in self.topology()["roles"]
            if role["kind"] != "frontend"
            for replica in role["replicas"]
            for worker in replica["workers"]
        ]

    def tokens(self) -> int:
        """Tokens that the engines have made."""
        return sum(worker["tokens"] for worker in self.engine_workers())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def daemon_pid(self) -> int | None:
        return self.status()["daemon"]["pid"]

    def kill_daemon(self) -> None:
        pid = self.daemon_pid()
        assert pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists() or zombie(pid))

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self("down", "--now", code=None, timeout=30)
        for file in self.spoken:
            file.close()


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def alive(pid: int) -> bool:
    return not zombie(pid)


@contextlib.contextmanager
def running():
    # Not tmp_path: unix socket paths are short.
    root = Path(tempfile.mkdtemp(prefix="dyn-"))
    one = Dynorch(root)
    try:
        yield one
    finally:
        one.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def dynorch():
    """A dynorch of the test's own."""
    with running() as one:
        yield one


@pytest.fixture(scope="module")
def dynorch_factory():
    """Makes one that the tests of a module share."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(running())


@pytest.fixture
def daemon(tmp_path):
    """A fake daemon for one real worker."""
    made = Daemon(tmp_path)
    yield made
    made.context.destroy(linger=0)


@pytest.fixture
def start(tmp_path, daemon):
    """Starts real workers under the fake daemon."""
    workers = []

    def begin(entry=main, **fields):
        workers.append(Worker(entry, tmp_path, daemon, **fields))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()
        sys.stdout.write(f"pid {worker.pid}: status {worker.status}, said {worker.said()!r}\n")


@pytest.fixture
def frontend(daemon):
    """Connects to a worker's request plane."""
    made = []

    def connect(worker):
        made.append(Frontend(daemon.context, worker.config.plane))
        return made[-1]

    return connect


@pytest.fixture
def freezer():
    """The old freezer: who is frozen in it doesn't even die, and is in state D."""
    path = Path(f"/sys/fs/cgroup/freezer/dynorch-test-{os.getpid()}")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("NOT TESTED HERE: no writable freezer (cgroup v1), so nothing that won't die")
    yield path
    (path / "freezer.state").write_text("THAWED")
    eventually(lambda: path.rmdir() is None if not (path / "tasks").read_text() else False)
