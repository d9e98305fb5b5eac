"""The gate on a whole dynorch: memory that isn't free delays exactly the start that needs it."""

import json
import os
import signal

import pytest

from tests.e2e import gpus
from tests.e2e.conftest import alive
from tests.e2e.gpus import comes_to, waits
from tests.eventually import eventually


@pytest.fixture
def fake(dynorch):
    """Two GPUs that exist in a file."""
    return gpus.given(dynorch, 2)


@pytest.fixture
def holder(dynorch):
    """A stranger's process."""
    process = gpus.stranger(dynorch.env)
    yield process
    gpus.end(process)


def is_up(dynorch) -> bool:
    status = dynorch.status()
    return status["daemon"]["pid"] is not None and bool(status["topologies"])


def test_statement_14_nothing_is_born_before_the_memory_is_back(dynorch, fake):
    dynorch("up", "-d", dynorch.file(gpus.TWO))
    for index, role in enumerate("ab"):
        assert gpus.visible_gpus(dynorch.pid(role)) == f"GPU-{index}-fake"
    other = dynorch.pid("b")
    fake.hold(0, 70.0)
    os.kill(dynorch.pid("a"), signal.SIGKILL)
    held = waits(dynorch, "a", "GPU 0 (GPU-0-fake) still holds 70.0 GiB", "nobody that can be seen")
    assert held["cause"] == "waiting-gpu"
    assert held["incarnation"] == 1
    fake.free(0)
    back = comes_to(dynorch, "a")
    assert back["incarnation"] == 2
    assert "SIGKILL" in back["reason"]
    assert dynorch.pid("b") == other


def test_who_was_given_up_leaves_how_much_memory_was_in_use_before_and_after(dynorch, fake):
    text = gpus.TWO.replace('command = ["sleep", "3600"]', 'command = ["sh", "-c", "exit 2"]', 1)
    dynorch("up", "--ci", dynorch.file(text), code=3)
    (line,) = (dynorch.state_dir / "failures.jsonl").read_text().splitlines()
    numbers = {"before_bytes": gpus.IDLE, "end_bytes": gpus.IDLE, "total_bytes": 80 * gpus.GIB}
    assert json.loads(line)["gpu_memory"] == {"GPU-0-fake": {"index": 0, **numbers}}


def test_statement_16_a_stranger_is_named_waited_for_and_never_touched(dynorch, fake, holder):
    fake.hold(0, 41.2, holder.pid)
    text = gpus.TWO.replace('interval = "50ms"', 'interval = "50ms"\nevent-after = "100ms"')
    text = text.replace("gpus = 1", "gpus = [0]", 1)  # left alone, it would go where nobody is
    dynorch.popen("up", dynorch.file(text))
    held = eventually(lambda: is_up(dynorch) and waits(dynorch, "a", f"pid {holder.pid} ("), 30)
    for word in ("GPU 0", "41.2 GiB", "1.8 GiB would count as free", "not ours"):
        assert word in held["reason"]
    assert "end it if it shouldn't be there" in held["advice"]
    assert held["incarnation"] == held["restarts"] == 0
    eventually(lambda: "gpu-held" in dynorch("events").stdout)
    comes_to(dynorch, "b")
    assert holder.poll() is None
    fake.free(0)
    comes_to(dynorch, "a")
    assert holder.poll() is None


def test_statement_17_an_orphan_of_ours_is_ended_and_a_start_follows(dynorch, fake):
    dynorch.run_dir.mkdir(mode=0o700)
    left = gpus.orphan(dynorch.env, dynorch.run_dir, "two/a-0.0#7")
    other = gpus.orphan(dynorch.env, dynorch.root / "other", "two/b-0.0#7")
    fake.hold(0, 30.0, left.pid)
    fake.hold(1, 30.0, other.pid)
    try:
        dynorch.popen("up", dynorch.file(gpus.TWO))
        assert eventually(left.poll, 30) == -signal.SIGKILL
        assert dynorch.replica("a")["incarnation"] == 0
        fake.free(0)
        comes_to(dynorch, "a")
        waits(dynorch, "b", f"pid {other.pid}", "not ours")
        assert other.poll() is None, "it belongs to another run directory's daemon"
    finally:
        gpus.end(left)
        gpus.end(other)
    assert "orphan-found" in dynorch("events").stdout


def test_statement_20_a_provider_that_fails_is_a_reason_and_no_more(dynorch, fake):
    dynorch("up", "-d", dynorch.file(gpus.TWO))
    other = dynorch.pid("b")
    content = fake.path.read_text()
    fake.path.write_text("{}x")
    os.kill(dynorch.pid("a"), signal.SIGKILL)
    waits(dynorch, "a", "GPU 0", "doesn't answer", "gpus.json")
    assert dynorch.pid("b") == other
    assert alive(other)
    fake.path.write_text(content)
    comes_to(dynorch, "a")


def test_a_wait_goes_on_under_a_new_daemon_and_a_stop_ends_it(dynorch, fake):
    dynorch("up", "-d", dynorch.file(gpus.TWO))
    fake.hold(0, 70.0)
    os.kill(dynorch.pid("a"), signal.SIGKILL)
    waits(dynorch, "a", "70.0 GiB")
    dynorch.kill_daemon()
    fake.hold(0, 50.0)
    dynorch.popen("up", "-d", dynorch.file(gpus.TWO))
    eventually(lambda: is_up(dynorch) and waits(dynorch, "a", "50.0 GiB"), 30)
    dynorch("stop", "two/a")
    assert dynorch.replica("a")["phase"] == "stopped"
    fake.free(0)
