"""Whatever is killed or frozen, and whenever: nothing is left over, and all is well again.

Each seed is a history of harm of its own (see `chaos`). A failing one is run again, alone, with
`DYNORCH_CHAOS_SEEDS=SEED`, or a range of them, `100-120`, more often than any suite has time for.
"""

import json
import os
import signal

import pytest

from tests.e2e.chaos import World
from tests.e2e.conftest import COMMAND, alive, zombie
from tests.e2e.test_crashes import shim_of
from tests.eventually import eventually

FIRST, _, LAST = os.environ.get("DYNORCH_CHAOS_SEEDS", "1-3").partition("-")
STEPS = 7
STUBBORN = """
name = "p"
stop = { drain = "500ms", grace = "20s", linger = "100ms" }
[processes.job]
command = ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]
"""


@pytest.mark.parametrize("seed", range(int(FIRST), int(LAST or FIRST) + 1))
def test_harm_of_a_seed(dynorch, seed):
    World(dynorch, seed).run(STEPS)


def test_a_frozen_shim_and_a_frozen_zygote_hold_nobody_up(dynorch):
    file = dynorch.file(STUBBORN)
    dynorch("up", "-d", file)
    worker = dynorch.pid("job")
    os.kill(shim_of(worker), signal.SIGSTOP)
    (zygote,) = (int(path.stem) for path in (dynorch.run_dir / "zygotes").glob("*.json"))
    os.kill(zygote, signal.SIGSTOP)
    dynorch.popen("restart", "p/job")
    eventually(lambda: dynorch.replica("job")["phase"] == "stopping")
    dynorch("down", "--now", timeout=15)
    assert all(zombie(pid) for pid in (worker, zygote))


def test_a_state_that_cannot_be_read_starts_nothing_beside_what_lives(dynorch):
    file = dynorch.file(STUBBORN.replace('grace = "20s"', 'grace = "500ms"'))
    dynorch("up", "-d", file)
    dynorch("restart", "p/job")
    before = dynorch.pid("job")
    state = dynorch.run_dir / "replicas" / "p~job-0.json"
    assert json.loads(state.read_text())["state"]["incarnation"] == 2
    dynorch.kill_daemon()
    state.unlink()
    state.mkdir()
    dynorch("up", "-d", file)
    assert zombie(before)
    after = dynorch.replica("job")
    assert (after["phase"], after["incarnation"]) == ("ready", 3)
    state.rmdir()


def test_a_verb_that_was_overtaken_ends(dynorch):
    dynorch("up", "-d", dynorch.file(STUBBORN.replace('grace = "20s"', 'grace = "2s"')))
    restart = dynorch.popen("restart", "p/job")
    eventually(lambda: dynorch.replica("job")["phase"] == "stopping")
    dynorch("stop", "p/job")
    assert restart.wait(timeout=10) == 1
    assert "stopped" in dynorch.said()


def test_up_also_brings_back_what_is_still_stopping(dynorch):
    file = dynorch.file(STUBBORN.replace('grace = "20s"', 'grace = "2s"'))
    dynorch("up", "-d", file)
    dynorch.popen("stop", "p/job")
    eventually(lambda: dynorch.replica("job")["phase"] == "stopping")
    dynorch("up", "-d", file)
    replica = dynorch.replica("job")
    assert (replica["phase"], replica["incarnation"]) == ("ready", 2)


def test_a_run_directory_of_somebody_else_is_named(dynorch):
    dynorch.run_dir.mkdir()
    if os.getuid() == 0:
        os.chown(dynorch.run_dir, 12345, 12345)
    else:
        dynorch.env["DYNORCH_RUN_DIR"] = "/"
    for verb in (("status",), ("down",), ("up", "-d", dynorch.file(STUBBORN)), ("daemon",)):
        refused = dynorch(*verb, code=1)
        assert refused.stderr.count("\n") == 1
        assert "belongs to uid" in refused.stderr


def test_a_daemon_without_standard_descriptors_serves(dynorch):
    with_none = dynorch.file(STUBBORN.replace('grace = "20s"', 'grace = "500ms"'))

    def closed(*args: object) -> int:
        command = " ".join(["exec", *COMMAND, *map(str, args), "<&-", ">&-", "2>&-"])
        return os.waitstatus_to_exitcode(
            os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", command], dynorch.env), 0)[1]
        )

    assert closed("up", "-d", with_none) == 0
    worker = dynorch.pid("job")
    assert alive(worker)
    assert closed("down") == 0
    assert zombie(worker)
