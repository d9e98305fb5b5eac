"""A test session that is ended itself: what it has started ends, too."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.host import procfs
from tests.e2e.conftest import zombie
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ("-p", "tests.conftest", "-p", "tests.e2e.conftest", "-p", "no:cacheprovider")
SUITE = """
import json, signal
from pathlib import Path
from orchestrator.host import procfs
from tests.e2e.machine import Machine

TOPOLOGY = 'name = "t"\\n[processes.p]\\ncommand = ["sh", "-c", "sleep 1000 & sleep 1000"]\\n'

def test_it(dynorch):
    dynorch("up", "-d", dynorch.file(TOPOLOGY))
    daemon = dynorch.daemon_pid()
    pids = [daemon, *(one.pid for one in procfs.descendants(daemon))]
    machine = Machine()
    machine.start_zygote()
    life = machine.zoo("polite")
    pids += [life.shim, *life.running(5).values()]
    here = Path(__file__).parent
    told = {"pids": pids, "root": str(dynorch.root), "other": str(machine.root)}
    (here / "draft").write_text(json.dumps(told))
    (here / "draft").rename(here / "told")
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_session_that_is_ended_leaves_nothing(tmp_path, number):
    (tmp_path / "test_it.py").write_text(SUITE)
    told = tmp_path / "told"
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *PLUGINS, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        eventually(lambda: told.exists() or session.poll() is not None, within_s=60)
        assert told.exists(), session.communicate()[0]
        found = json.loads(told.read_text())
        assert len(found["pids"]) >= 11, "a daemon, its zygote, two shims, trees of 2 and 5"
        assert not any(map(zombie, found["pids"]))
        session.send_signal(number)
        session.wait(60)
        eventually(lambda: all(map(zombie, found["pids"])), within_s=60)
        eventually(lambda: not Path(found["root"]).exists())
        eventually(lambda: not executors(session.pid), within_s=60)
    finally:
        session.kill()
        session.communicate()
        if told.exists():
            shutil.rmtree(json.loads(told.read_text())["other"], ignore_errors=True)


def executors(pid: int) -> list[int]:
    """Who has seen to it, and is still there."""
    words = f"last_will.py\0{pid}\0".encode()
    return [
        each
        for each in procfs.pids()
        if words in (procfs.read(f"/proc/{each}/cmdline", 4096) or b"")
    ]
