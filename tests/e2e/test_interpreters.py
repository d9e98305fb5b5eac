"""Workers in another environment than ours: it has what they need, and nothing of ours but them."""

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from orchestrator.host import procfs
from tests.e2e.conftest import zombie
from tests.e2e.test_up_down import request
from tests.eventually import eventually

NEEDED = ("msgspec", "zmq", "uvloop", "prometheus_client")
DISTRIBUTIONS = ("msgspec", "pyzmq", "uvloop", "prometheus_client")
TOPOLOGY = """
name = "t"
model = "tiny"
python = "PYTHON"
restart = { backoff-initial = "50ms", backoff-max = "50ms" }
[frontend]
port = {port}
[roles.worker]
engine = "sim"
sim = { startup = "0s" }
[processes.other]
command = ["sleep", "1000"]
"""


def environment(folder: Path, *, without: str = "") -> Path:
    """Make a virtual environment with what a simulated worker needs, and return its Python."""
    command = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)]
    subprocess.run(command, check=True)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site, ours = folder / "lib" / version / "site-packages", Path(sysconfig.get_path("purelib"))
    for name in NEEDED:
        found = importlib.util.find_spec(name)
        (site / name).symlink_to(Path(found.origin).parent)
    for name in DISTRIBUTIONS:
        if name != without:
            (info,) = ours.glob(f"{name}-*.dist-info")
            (site / info.name).symlink_to(info)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return environment(tmp_path_factory.mktemp("env") / "v")


def test_workers_run_in_the_environment_that_the_file_names(dynorch, python):
    dynorch("up", "-d", dynorch.file(TOPOLOGY.replace("PYTHON", str(python))))
    status, _ = request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "a"})
    assert status == 200
    before = dynorch.pid("worker")
    told = next(line for line in dynorch("events").stdout.splitlines() if "preloaded" in line)
    assert f"interpreter={python}" in told
    assert "msgspec=" in told
    os.kill(before, signal.SIGKILL)
    eventually(lambda: dynorch.replica("worker")["routable"] and dynorch.pid("worker") != before)


SPARES = 2
OTHER = 'name = "o"\n[processes.p]\ncommand = ["sleep", "1000"]\n'


def family(dynorch) -> list[int]:
    """The zygote for simulated engines, with its spare shim and worker; empty where it has none."""
    below = procfs.descendants(dynorch.daemon_pid())
    (zygote, *_) = [one for one in below if b"dynorch: zygote sim" in title(one.pid)] or (None,)
    spares = procfs.descendants(zygote.pid) if zygote else ()
    spares = [one for one in spares if b"dynorch: spare" in title(one.pid)]
    return [zygote.pid, *(one.pid for one in spares)] if len(spares) == SPARES else []


def title(pid: int) -> bytes:
    return procfs.read(f"/proc/{pid}/cmdline", 200) or b""


def test_an_interpreter_goes_with_the_last_topology_that_names_it_and_comes_again(dynorch, python):
    named = TOPOLOGY.replace("PYTHON", str(python))
    dynorch("up", "-d", dynorch.file(OTHER, "o.toml"))
    dynorch("up", "-d", dynorch.file(named))
    first = eventually(lambda: family(dynorch), within_s=30)
    dynorch("up", "-d", dynorch.file(named.replace(f'python = "{python}"\n', "")))
    eventually(lambda: all(map(zombie, first)), within_s=30)
    assert not family(dynorch)
    assert request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "a"})[0] == 200
    dynorch("up", "-d", dynorch.file(named))
    second = eventually(lambda: family(dynorch), within_s=30)
    assert request(dynorch, "/v1/completions", {"model": "tiny", "prompt": "a"})[0] == 200
    dynorch("down", "t")
    eventually(lambda: all(map(zombie, second)), within_s=30)
    assert dynorch.topology("o")["health"] == "ready"


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda folder: folder / "nothing", "cannot run {}: No such file or directory"),
        (lambda folder: environment(folder / "v", without="pyzmq"), "pyzmq isn't installed"),
        (lambda _: Path("/bin/false"), "the zygote died"),
    ],
    ids=["absent", "poor", "no-python"],
)
def test_an_environment_that_will_not_do_is_refused_before_anything_starts(
    dynorch, tmp_path, make, wrong
):
    python = make(tmp_path)
    file = dynorch.file(TOPOLOGY.replace("PYTHON", str(python)))
    refused = dynorch("up", "-d", file, code=2)
    assert f"{file}:4: python: " in refused.stderr
    assert wrong.format(python) in refused.stderr
    assert "name one whose environment has it, or leave python out" in refused.stderr
    assert dynorch("status", code=None).stdout.count("t/") == 0
