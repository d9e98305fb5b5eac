"""Nobody of a tree is left, whichever of the three back-ends holds it together: statement 3.

Every test here runs with all three; where this machine lacks one, its tests say so.
"""

import mmap
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from orchestrator.host import cgroup, procfs, shm, title
from orchestrator.host.records import StateSeen
from tests.e2e.machine import Machine, alive, skip_unless_possible
from tests.eventually import in_time

FOUR = {"plain", "group", "session", "daemon"}


@pytest.fixture(params=["walk", "cgroup", "pidns"])
def machine(request):
    skip_unless_possible(request.param)
    made = Machine(tree=request.param)
    yield made
    made.close()
    assert groups_left() == []


def groups_left():
    """Control groups that a test of this process has left over."""
    home = cgroup.home()
    return list(Path(home).glob(f"dynorch-test-*-{os.getpid()}")) if home else []


def stop(life, grace_s=10.0, linger_s=0.0):
    life.machine.call(life.link.stop, grace_s, linger_s)


# The tree.


def test_statement_01_a_stop_leaves_nobody_of_four_kinds(machine):
    life = machine.zoo("polite")
    pids = life.running(5)
    assert set(pids) == {*FOUR, "main"}
    stop(life)
    record = life.ended()
    assert not alive(pids.values())
    assert (record.status, record.asked, record.killed) == (7 << 8, True, 4)


def test_statement_01_so_does_one_of_a_user_without_any_right(monkeypatch):
    """All of it belongs to nobody: daemon, zygote, shim, zoo. In a child, for it can't return."""
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("NOT TESTED HERE: no /usr/bin/python3 for nobody to run")
    heard, heard_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os.dup2(heard_end, 1)
        os.dup2(heard_end, 2)
        status = 1
        try:
            be_nobody()
            monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
            status = stop_a_zoo()
        finally:
            os._exit(status)
    os.close(heard_end)
    assert os.waitpid(pid, 0)[1] == 0, os.read(heard, 1 << 16).decode()
    os.close(heard)


def be_nobody():
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


def stop_a_zoo():
    machine = Machine()
    life = machine.zoo("polite")
    pids = life.running(5)
    stop(life)
    record = life.ended()
    machine.close()
    return 0 if record.killed == 4 and not alive(pids.values()) else 2


def test_statement_03_each_back_end_really_is_at_work(machine):
    life = machine.zoo("polite")
    pids = set(life.running(5).values())
    spaces = {Path(f"/proc/{pid}/ns/pid").readlink() for pid in pids}
    apart = spaces - {Path("/proc/self/ns/pid").readlink()}
    assert len(apart) == (machine.tree == "pidns")
    group = life.link.record.group or life.wait_for(StateSeen).group
    assert bool(group) == (machine.tree == "cgroup")
    if group:
        assert cgroup.members(group) == pids
    os.kill(pids.pop(), signal.SIGKILL)
    machine.call(life.link.kill)
    life.ended()
    assert not alive(pids)


def test_statement_04_a_child_that_ignores_term_does_not_outlive_a_main_that_obeys(machine):
    life = machine.zoo("polite", crash_linger_s=0.1)
    pids = life.running(5)
    for pid in pids.values():
        os.kill(pid, signal.SIGTERM)
    record = life.ended()
    assert (record.status, record.killed) == (7 << 8, 4)
    assert not alive(pids.values())


@pytest.mark.parametrize("kind", ["storm", "hopper"])
def test_statement_05_a_fork_storm_ends(machine, kind):
    life = machine.zoo(kind, kill_timeout_s=30.0)
    life.running(2 if kind == "hopper" else 1)
    machine.eventually(lambda: len(procfs.descendants(life.shim)) > (40 if kind == "storm" else 1))
    began = time.monotonic()
    machine.call(life.link.kill)
    record = life.ended(60)
    assert record.empty_at - began < life.spawn.kill_timeout_s
    assert not procfs.descendants(life.shim)
    session = [one for one in procfs.every().values() if one.sid == life.shim and one.alive]
    assert {one.pid for one in session} <= {life.shim}


def test_statement_09_a_grandchild_that_holds_the_output_delays_nothing(machine):

    def heard_after() -> float:
        name = f"agg/worker-{len(machine.lives)}.0#1"
        life = machine.zoo("noisy_exit", name=name, crash_linger_s=60.0)
        pids = life.running(2)
        began = time.monotonic()
        os.kill(pids["main"], signal.SIGKILL)
        assert life.exited.at >= began
        took_s = time.monotonic() - began
        assert alive([pids["plain"]])  # nothing ends the grandchild before the kill
        machine.call(life.link.kill)
        assert life.ended().tail == "hello\n"
        return took_s

    in_time(heard_after, 0.1)


def test_statement_10_one_that_takes_another_name_is_found(machine):
    """By its tag with SPT_NOENV, and by the walk where it has written over its environment."""
    life = machine.zoo("titled")
    pids = life.running(3)
    tag = title.entry(life.spawn.tag)
    assert procfs.environ_has(pids["kept"], tag)
    assert not procfs.environ_has(pids["shed"], tag)
    assert life.spawn.environment()["SPT_NOENV"] == "1"
    os.kill(pids["main"], signal.SIGKILL)
    assert life.ended().killed == 2
    assert not alive(pids.values())


def test_statement_12_names_in_shared_memory_go_and_foreign_ones_stay(machine):
    """One of the names is a tracker's to unlink, one is nobody's, and one isn't of this tree."""
    life = machine.zoo("shared_memory")
    pids = life.running(2)
    names = (life.folder / "names").read_text().split()
    foreign = Path(shm.ROOT, f"psm_foreign_{os.getpid()}")
    foreign.write_bytes(b"x" * 4096)
    ours = Path(shm.ROOT, names[1])
    try:
        with ours.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ):
            os.kill(pids["main"], signal.SIGKILL)
            record = life.ended()
            assert not Path(shm.ROOT, names[0]).exists()
            assert ours.exists()  # this very process maps it
            assert record.unlinked in ([], names[:1])
        assert foreign.exists()
    finally:
        foreign.unlink()
        ours.unlink(missing_ok=True)


def test_statement_12_a_name_that_nobody_maps_any_more_goes(machine):
    life = machine.zoo("shared_memory")
    pids = life.running(2)
    names = set((life.folder / "names").read_text().split())
    os.kill(pids["main"], signal.SIGKILL)
    record = life.ended()
    assert not names & {entry.name for entry in Path(shm.ROOT).iterdir()}
    assert "psm_zoo" in str(record.unlinked)


def test_statement_45_main_gets_one_sigterm_and_its_group_none(machine):
    life = machine.zoo("recorder")
    pids = life.running(4)
    for _ in range(3):
        stop(life, grace_s=30.0, linger_s=0.2)
    record = life.ended()
    assert (record.status, record.killed) == (0, 3)
    assert (life.folder / "terms").read_text() == "main\n"
    assert not alive(pids.values())


def test_statement_45_main_gets_one_sigterm_however_often_it_is_told(machine):
    life = machine.zoo("stubborn")
    pids = life.running(5)
    for _ in range(3):
        stop(life, grace_s=60.0)
    terms = life.folder / "terms"
    machine.eventually(terms.exists)
    stop(life, grace_s=0.2)
    record = life.ended()
    assert terms.exists() is False or terms.read_text() == "TERM\n"
    assert not alive(pids.values())
    assert (record.status, record.killed) == (9, 5)


def test_kill_takes_no_grace(machine):
    life = machine.zoo("stubborn")
    pids = life.running(5)
    machine.call(life.link.kill)
    record = life.ended()
    assert not alive(pids.values())
    assert not (life.folder / "terms").exists()
    assert (record.asked, record.status) == (True, 9)


def test_the_rest_gets_its_time_to_linger(machine):
    life = machine.zoo("polite", linger_s=0.0)
    life.running(5)
    stop(life, linger_s=0.4)
    record = life.ended()
    assert 0.4 <= record.empty_at - record.exited_at < 3.0
