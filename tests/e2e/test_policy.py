"""The restart policy on real processes: how often each kind of end is tried, and what is kept."""

import time
from pathlib import Path

import pytest

from orchestrator.daemon.client import Client, decode_data
from orchestrator.wire.snapshot import ReplicaStatus, Snapshot
from tests.e2e import gpus
from tests.e2e.conftest import Dynorch
from tests.eventually import eventually, in_time

QUICK = """
name = "p"
restart = { backoff-initial = "20ms", backoff-max = "20ms", intensity = 2 }
start = { settle = "0s" }
[gpu]
interval = "20ms"
"""


def ends(name: str, script: str, more: str = "") -> str:
    """A process that leaves a line for each of its lives, and then ends as the script says.

    It is ready when it is born, unless `more` says otherwise.
    """
    return f"""
[processes.{name}]
command = ["sh", "-c", "echo life >> {name}.lives; {script}"]
{more}
"""


def lives(dynorch: Dynorch, name: str) -> int:
    path = dynorch.root / f"{name}.lives"
    return len(path.read_text().splitlines()) if path.exists() else 0


def up_until_failed(dynorch: Dynorch, *processes: str) -> None:
    dynorch("up", "-d", dynorch.file(QUICK + "".join(processes)), code=1, timeout=100)


def given_up(dynorch: Dynorch, name: str) -> tuple[str, int]:
    """The cause for which it was given up, and how many lives it had had."""
    replica = eventually(lambda: (r := dynorch.replica(name))["phase"] == "failed" and r, 60)
    assert replica["incarnation"] == lives(dynorch, name)
    return replica["cause"], replica["incarnation"]


NEVER_READY = 'ready = { log = "never" }'
OOM = "echo torch.OutOfMemoryError: CUDA out of memory; exit 1"


def test_statement_23_an_exit_with_0_after_ready_is_a_crash_and_restarted(dynorch):
    """So is it a crash after ready that names what would be fatal before (statement 26)."""
    up_until_failed(
        dynorch,
        ends("zero", "exit 0"),
        ends("late", OOM),
        ends("patient", "exit 1", "restart = { intensity = 5 }"),
    )
    assert given_up(dynorch, "zero") == ("crash-loop", 3)
    assert given_up(dynorch, "late") == ("crash-loop", 3)
    assert given_up(dynorch, "patient") == ("crash-loop", 6)


def test_statement_24_what_no_retry_cures_is_tried_once(dynorch):
    up_until_failed(dynorch, *(ends(f"c{code}", f"exit {code}", NEVER_READY) for code in (2, 78)))
    assert given_up(dynorch, "c2") == ("config", 1)
    assert given_up(dynorch, "c78") == ("config", 1)


def test_statement_27_a_gpu_that_somebody_takes_after_the_gate_is_waited_for_and_given_up(dynorch):
    """No backoff lies between the six lives, as a backoff of a minute shows."""
    fake = gpus.FakeGpus(dynorch.root / "gpus.json", 1)
    dynorch.env["DYNORCH_GPU_PROVIDER"] = f"fake:{fake.path}"
    text = "Free memory on device cuda:0 (1.0/80 GiB) on startup is less than desired"
    slow = f"{NEVER_READY}\ngpus = 1\nrestart = {{ backoff-initial = '60s', backoff-max = '60s' }}"
    up_until_failed(dynorch, ends("busy", f"echo 'ValueError: {text}'; exit 1", slow))
    assert given_up(dynorch, "busy") == ("gpu-busy", 6)


# ---- what the next daemon knows ----------------------------------------------------------------


def seen(dynorch: Dynorch, name: str = "p") -> ReplicaStatus:
    with Client(dynorch.run_dir) as client:
        snapshot = decode_data(client.call("status", timeout_s=30), Snapshot)
    found = [role for each in snapshot.topologies for role in each.processes if role.name == name]
    assert found
    return found[0].replicas[0]


def next_start(dynorch: Dynorch) -> tuple[float, float]:
    """The earliest and the latest moment at which the backoff can end, as it is told now."""
    before = time.monotonic()
    replica = seen(dynorch)
    assert replica.deadline is not None
    assert replica.deadline.what == "next start"
    return before + replica.deadline.in_s, time.monotonic() + replica.deadline.in_s


def test_statement_32_the_next_daemon_knows_the_crash_and_the_rest_of_the_pause(dynorch):
    """Killed in the pause after the first crash; the second is one too many, as without that."""
    text = QUICK.replace("intensity = 2", "intensity = 1").replace("20ms", "10s", 2)
    file = dynorch.file(text + ends("p", "exit 1"))
    dynorch.popen("up", "-d", file)
    eventually(lambda: lives(dynorch, "p") == 1, within_s=60)
    before = eventually(lambda: (r := seen(dynorch)).phase == "waiting" and r, within_s=30)
    early, late = next_start(dynorch)
    dynorch.kill_daemon()
    dynorch.popen("up", "-d", file)
    eventually(lambda: dynorch.daemon_pid() and dynorch.status()["topologies"], within_s=30)
    after = seen(dynorch)
    assert (after.restarts, after.incarnation, after.reason) == (1, 1, before.reason)
    early_now, late_now = next_start(dynorch)
    assert early - 1.0 <= late_now
    assert early_now <= late + 1.0
    assert given_up(dynorch, "p") == ("crash-loop", 2)


# ---- stops while something is waited for -------------------------------------------------------


WAITS = """
name = "w"
restart = { backoff-initial = "1000s", backoff-max = "1000s" }
[gpu]
interval = "50ms"
[processes.needed]
command = ["sleep", "1000"]
ready = { log = "never" }
[processes.dependency]
command = ["sleep", "1000"]
depends-on = ["needed"]
[processes.gpu]
command = ["sleep", "1000"]
gpus = 1
[processes.backoff]
command = ["sh", "-c", "exit 1"]
start = { settle = "0s" }
"""


@pytest.fixture(scope="module")
def waiting(dynorch_factory):
    """Three that wait, each for something else."""
    dynorch = dynorch_factory()
    fake = gpus.FakeGpus(dynorch.root / "gpus.json", 1)
    fake.hold(0)
    dynorch.env["DYNORCH_GPU_PROVIDER"] = f"fake:{fake.path}"
    up = dynorch.popen("up", "-d", dynorch.file(WAITS))
    eventually(lambda: Path(dynorch.run_dir, "control.sock").exists(), within_s=30)
    yield dynorch
    up.kill()
    up.wait()


@pytest.mark.parametrize("what", ["dependency", "gpu", "backoff"])
def test_statement_47_a_stop_of_who_waits_takes_a_tenth_of_a_second(waiting, what):
    def stopped_after() -> float:
        with Client(waiting.run_dir) as client:
            eventually(lambda: waits(waiting, what), within_s=30)
            before = seen(waiting, what).incarnation
            began = time.monotonic()
            client.call("stop", target=f"w/{what}")
            replica = seen(waiting, what)
            took_s = time.monotonic() - began
            assert (replica.phase, replica.incarnation) == ("stopped", before)
            assert [worker.pid for worker in replica.workers] == [None]
            client.call("start", target=f"w/{what}")
        return took_s

    in_time(stopped_after, 0.1)


def waits(dynorch: Dynorch, what: str) -> bool:
    replica = seen(dynorch, what)
    assert replica.phase == "waiting", replica.reason
    assert replica.cause == {"backoff": what}.get(what, f"waiting-{what}")
    return True
