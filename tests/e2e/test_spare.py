"""A shim and its worker's process that are there before anybody has asked for them."""

import os
import signal
from pathlib import Path

import pytest

from orchestrator.host import cgroup, procfs
from tests.e2e.machine import Machine, alive, skip_unless_possible


@pytest.fixture(params=["walk", "cgroup"])
def machine(request):
    skip_unless_possible(request.param)
    made = Machine(tree=request.param)
    made.start_zygote()
    yield made
    made.close()


def spare(machine: Machine) -> tuple[int, int]:
    """The spare shim and the spare worker, once they wait."""

    def there():
        for shim in procfs.children(machine.zygote.pid) or ():
            waits = procfs.cmdline(shim).startswith(b"dynorch: spare shim")
            for seed in (procfs.children(shim) or ()) if waits else ():
                if procfs.cmdline(seed).startswith(b"dynorch: spare worker"):
                    return shim, seed
        return None

    return machine.eventually(there)


def groups_of(shim: int) -> list[Path]:
    return list(Path(cgroup.home() or "/none").glob(f"{cgroup.PREFIX}{shim}-*"))


def test_a_worker_is_there_before_it_is_asked_for_and_so_is_the_next(machine):
    shim, seed = spare(machine)
    life = machine.born(argv=["sleep", "1000"])
    assert (life.shim, life.main) == (shim, seed)
    machine.eventually(lambda: procfs.cmdline(seed) == b"sleep\x001000\0")
    if machine.tree == "cgroup":
        (group,) = groups_of(shim)
        assert cgroup.members(str(group)) == {seed}
    assert spare(machine) != (shim, seed)
    machine.call(life.link.kill)
    assert life.ended().status == signal.SIGKILL
    assert groups_of(shim) == []


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_spares_end_with_their_zygote_even_stopped_ones(machine, how):
    pids = spare(machine)
    if how == "killed":
        os.kill(pids[0], signal.SIGSTOP)
        os.kill(machine.zygote.pid, signal.SIGKILL)
    else:
        machine.call(machine.zygote.close)
    machine.eventually(lambda: not alive(pids))
    assert groups_of(pids[0]) == []


def test_a_spare_that_was_killed_is_a_main_that_was_killed(machine):
    _, seed = spare(machine)
    os.kill(seed, signal.SIGKILL)
    life = machine.born(argv=["sleep", "1000"])
    assert life.ended().status == signal.SIGKILL


def test_what_fits_no_spare_is_forked_on_the_spot(machine):
    if machine.tree == "walk":
        skip_unless_possible("pidns")
    shim, seed = spare(machine)
    other = "walk" if machine.tree == "cgroup" else "pidns"
    life = machine.born(argv=["sleep", "1000"], tree=other, group="")
    assert life.shim == shim
    assert life.main != seed
    assert not alive([seed])
    assert groups_of(shim) == []
    assert not life.link.record.group
