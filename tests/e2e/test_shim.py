"""Zygote, shim and links with real processes: nothing is lost and nothing is left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.host import cgroup, procfs, shm
from orchestrator.host import tree as tree_module
from orchestrator.host.orphans import end_leftovers
from orchestrator.host.records import ShimLost, StateSeen, TreeEmpty
from orchestrator.host.rundir import RunDir
from orchestrator.host.shim_link import ShimLink
from tests.e2e.machine import Life, Machine, alive, skip_unless_possible, zoo
from tests.eventually import eventually, in_time

FOUR = {"plain", "group", "session", "daemon"}


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


def stop(life, grace_s=10.0, linger_s=0.0):
    life.machine.call(life.link.stop, grace_s, linger_s)


# A shim that is killed.


def test_statement_06_a_killed_shim_leaves_nobody(machine):
    def gone_after() -> float:
        life = machine.zoo("polite", name=f"agg/worker-{len(machine.lives)}.0#1")
        pids = life.running(5)
        began = time.monotonic()
        os.kill(life.shim, signal.SIGKILL)
        assert life.wait_for(ShimLost).record.shim.pid == life.shim
        record = life.ended()
        assert not alive(pids.values())
        assert record.status is None
        machine.eventually(lambda: set(pids.values()) <= {pid for pid, _ in machine.orphans})
        return record.empty_at - began

    in_time(gone_after, 1.0)


def test_statement_07_shim_and_daemon_killed_together_leave_nobody_behind(machine):
    daemon, run, born = stand_in(machine, "polite")
    pids = {kind: pid for one in born for kind, pid in one.items()}
    kill_together(machine, daemon, pids["shim"])
    assert alive([pids[kind] for kind in FOUR])
    assert end_what_is_left(machine, run).killed == 4
    assert not alive(pids.values())


@pytest.mark.parametrize("tree", ["cgroup", "pidns"])
def test_statement_07_even_one_that_flees_without_a_sign_is_caught_with(machine, tree):
    """It has another session, no tag, no pipe, and a new pid each millisecond."""
    skip_unless_possible(tree)
    daemon, run, born = stand_in(machine, "fugitive", tree=tree, settled=2)
    space = Path(f"/proc/{born[0]['main']}/ns/pid").readlink()
    (life,) = run.scan()
    kill_together(machine, daemon, born[0]["shim"])
    end_what_is_left(machine, run)
    assert not cgroup.members(life.record.group or "/none")
    if tree == "pidns":
        machine.eventually(lambda: space not in {namespace(pid) for pid in procfs.pids()})
    else:
        assert not Path(life.record.group).exists()


def namespace(pid):
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None


def test_names_in_shared_memory_go_though_nobody_is_left_who_knows_them(machine):
    """Main, its children, their shim and the daemon die at the same moment."""
    daemon, run, born = stand_in(machine, "shared_memory", settled=2)
    (life,) = run.scan()
    names = (life.directory / "t" / "names").read_text().split()
    link = machine.call(ShimLink.connect, life.directory, lambda _event: None)
    machine.call(link.note_shared_memory)
    machine.eventually((life.directory / shm.NAMES).exists)
    machine.call(link.close)
    everybody = procfs.descendants(born[0]["shim"])
    for one in everybody:
        tree_module.kill_exactly(one, signal.SIGSTOP)
    kill_together(machine, daemon, born[0]["shim"])
    for one in everybody:
        tree_module.kill_exactly(one)
    machine.eventually(lambda: not alive(one.pid for one in everybody))
    assert all(Path(shm.ROOT, name).exists() for name in names)
    assert end_what_is_left(machine, run).unlinked == sorted(names)
    assert not any(Path(shm.ROOT, name).exists() for name in names)


def kill_together(machine, daemon, shim):
    """Neither sees the other's end."""
    os.kill(shim, signal.SIGSTOP)
    daemon.kill()
    os.kill(shim, signal.SIGKILL)
    machine.eventually(lambda: not alive([daemon.pid, shim]))


def end_what_is_left(machine, run):
    """What the next daemon does about a life without a shim."""
    assert run.kill_zygotes() == []
    (found,) = run.scan()
    assert (found.alive, found.exit) == (False, None)
    ending = machine.loop.create_task(end_leftovers([found.record], machine.reaper))
    machine.eventually(ending.done)
    run.remove_life(found.directory)
    assert run.scan() == []
    return ending.result()[0]


# A tree that can't be killed.


def test_statement_11_a_tree_that_will_not_die_is_named_until_it_does(machine, freezer):
    life = machine.zoo("polite", kill_timeout_s=0.2)
    pids = life.running(5)
    (freezer / "cgroup.procs").write_text(str(pids["session"]))
    (freezer / "freezer.state").write_text("FROZEN")
    machine.eventually(lambda: procfs.stat(pids["session"]).state == "D")
    machine.call(life.link.kill)
    stuck = machine.eventually(lambda: life.last(StateSeen).stuck)
    assert stuck.startswith(f"{pids['session']} (")
    assert " state D" in stuck
    assert alive(pids.values()) == [pids["session"]]
    assert life.last(TreeEmpty) is None
    (freezer / "freezer.state").write_text("THAWED")
    assert life.ended().killed == 5
    assert not alive(pids.values())


# A zygote that is killed.


def test_workers_outlive_their_zygote_and_the_next_comes_by_itself(machine):
    life = machine.zoo("polite")
    pids = life.running(5)
    zygote = machine.zygote.pid
    os.kill(zygote, signal.SIGKILL)
    machine.eventually(lambda: not machine.zygote.started)
    assert len(alive(pids.values())) == 5
    other = machine.zoo("sleeper", name="agg/worker-1.0#1")
    other.running()
    assert machine.zygote.pid != zygote
    stop(life)
    assert life.ended().status == 7 << 8
    # Its shim had become our child, and was reaped.
    machine.eventually(lambda: life.shim in {pid for pid, _ in machine.orphans})


def test_closing_a_zygote_loses_nobody_who_was_born(machine):
    """Its answer lies unread in the socket: the worker lives, and must not count as unborn."""
    machine.start_zygote()
    machine.eventually(lambda: machine.zygote.ready)
    names = ("agg/worker-0.0#1", "agg/worker-1.0#1")
    spawns = [machine.make(name, argv=lambda folder: zoo("sleeper", folder)) for name in names]
    answers = [machine.call(machine.zygote.spawn, spawn) for spawn in spawns]
    records = [Path(spawn.directory) / "life.json" for spawn in spawns]
    eventually(lambda: all(path.exists() and b'"pipe"' in path.read_bytes() for path in records))
    machine.call(machine.zygote.close)
    for answer, spawn in zip(answers, spawns, strict=True):
        assert answer.result() > 0
        life = Life(machine, spawn)
        machine.lives.append(life)
        machine.call(life.follow)
        life.running()


def test_a_request_in_flight_is_answered_or_fails_when_the_zygote_dies(machine):
    """The spare may have it already. If so there is a life; if not, there is nothing."""
    machine.start_zygote()
    machine.eventually(lambda: machine.zygote.ready)
    machine.born(argv=["sleep", "1000"])
    spawn = machine.make("agg/worker-1.0#1", argv=lambda folder: zoo("sleeper", folder))
    answer = machine.ask(spawn)
    os.kill(machine.zygote.pid, signal.SIGKILL)
    machine.eventually(answer.done)
    failure = answer.exception()
    if failure is None:
        life = Life(machine, spawn)
        machine.lives.append(life)
        machine.call(life.follow)
        life.running()
    else:
        assert "died" in str(failure)
    assert len(machine.run.scan()) == (1 if failure else 2)


def test_a_preload_that_fails_says_why(machine):
    machine.call(
        machine.zygote.start, "odd", sys.executable, {}, [str(machine.run.code)], "no.such:thing"
    )
    answer = machine.ask(machine.make(argv=["true"]))
    machine.eventually(answer.done)
    assert "No module named 'no'" in str(answer.exception())


# A daemon that is killed.

STAND_IN = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from orchestrator.host.rundir import RunDir
from tests.e2e.machine import Machine
machine = Machine(RunDir(Path({run!r})), {tree!r})
lives = [machine.zoo({kind!r}, name=f"agg/worker-{{n}}.0#1") for n in range({count})]
print(json.dumps([{{**life.running({settled}), "shim": life.shim}} for life in lives]), flush=True)
machine.loop.run_forever()
"""


def stand_in(machine, kind, count=1, tree="walk", settled=5):
    """Another process that plays the daemon; it is killed by the test."""
    run = RunDir(machine.root / "r")
    root = str(Path(__file__).resolve().parents[2])
    code = STAND_IN.format(
        root=root, run=str(run.root), kind=kind, count=count, tree=tree, settled=settled
    )
    daemon = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    machine.stand_ins.append(daemon)
    machine.reaper.own(daemon.pid, lambda status: setattr(daemon, "returncode", status))
    return daemon, run, json.loads(daemon.stdout.readline())


def adopt(machine, run):
    """What the next daemon does."""
    assert run.kill_zygotes() == []
    adopted = []
    for found in run.scan():
        life = Life.__new__(Life)
        life.machine, life.events, life.link = machine, [], None
        life.folder = found.directory / "t"
        life.link = machine.call(ShimLink.connect, found.directory, life.heard)
        life.shim = life.link.record.shim.pid
        machine.lives.append(life)
        adopted.append(life)
    return adopted


def test_the_next_daemon_adopts_the_same_processes(machine):
    daemon, run, born = stand_in(machine, "polite", count=2)
    daemon.kill()
    machine.eventually(lambda: not alive([daemon.pid]))
    adopted = adopt(machine, run)
    assert sorted(life.shim for life in adopted) == sorted(one["shim"] for one in born)
    assert sorted(life.main for life in adopted) == sorted(one["main"] for one in born)
    for life in adopted:
        stop(life)
        assert life.ended().status == 7 << 8
    assert not alive(pid for one in born for pid in one.values() if pid not in daemon_pids(adopted))


def daemon_pids(adopted):
    """A shim may need a moment to leave after it has said its last."""
    return {life.shim for life in adopted}


def test_an_exit_without_a_daemon_is_seen_by_the_next(machine):
    daemon, run, born = stand_in(machine, "polite")
    daemon.kill()
    machine.eventually(lambda: not alive([daemon.pid]))
    os.kill(born[0]["main"], signal.SIGTERM)
    machine.eventually(lambda: not run.scan()[0].alive)
    (found,) = run.scan()
    assert found.exit.status == 7 << 8
    assert not found.exit.asked
    assert found.exit.killed == 4


def test_a_stop_that_was_asked_for_ends_without_the_daemon(machine):
    life = machine.zoo("stubborn")
    pids = life.running(5)
    stop(life, grace_s=0.3)
    machine.eventually((life.folder / "terms").exists)
    machine.call(life.link.close)
    life.link = None
    directory = Path(life.spawn.directory)
    machine.eventually((directory / "exit.json").exists)
    assert not alive(pids.values())
    (found,) = machine.run.scan()
    assert found.exit.asked
