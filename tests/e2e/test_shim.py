"""Zygote, shim and links with real processes: nothing is lost and nothing is left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.host import procfs, shm
from orchestrator.host.orphans import end_leftovers
from orchestrator.host.records import ShimLost
from orchestrator.host.rundir import RunDir
from tests.e2e.machine import Life, Machine, alive, zoo
from tests.eventually import eventually

FOUR = {"plain", "group", "session", "daemon"}


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


def stop(life, grace_s=10.0, linger_s=0.0):
    life.machine.call(life.link.stop, grace_s, linger_s)


# The tree.


def test_a_stop_leaves_nobody_of_four_kinds(machine):
    life = machine.zoo("polite")
    pids = life.running(5)
    assert set(pids) == {*FOUR, "main"}
    stop(life)
    record = life.ended()
    assert not alive(pids.values())
    assert (record.status, record.asked, record.killed) == (7 << 8, True, 4)


def test_a_main_that_leaves_by_itself_leaves_nobody(machine):
    life = machine.zoo("quitter")
    pids = life.running(5)
    record = life.ended()
    assert not alive(pids.values())
    assert (record.status, record.asked, record.killed) == (3 << 8, False, 4)


def test_a_killed_main_leaves_nobody(machine):
    life = machine.zoo("polite")
    pids = life.running(5)
    began = time.monotonic()
    os.kill(pids["main"], signal.SIGKILL)
    record = life.ended()
    assert not alive(pids.values())
    assert (record.status, record.asked) == (9, False)
    assert record.empty_at - began < 1.0


def test_main_gets_one_sigterm_however_often_it_is_told(machine):
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


@pytest.mark.parametrize("kind", ["storm", "hopper"])
def test_a_fork_storm_ends(machine, kind):
    life = machine.zoo(kind)
    life.running(2 if kind == "hopper" else 1)
    machine.eventually(lambda: len(procfs.descendants(life.shim)) > (100 if kind == "storm" else 1))
    began = time.monotonic()
    machine.call(life.link.kill)
    record = life.ended(60)
    assert record.empty_at - began < 10.0
    assert not procfs.descendants(life.shim)
    session = [one for one in procfs.every().values() if one.sid == life.shim and one.alive]
    assert {one.pid for one in session} <= {life.shim}


def test_a_grandchild_that_holds_the_output_delays_nothing(machine):
    life = machine.zoo("noisy_exit", crash_linger_s=5.0)
    pids = life.running(2)
    began = time.monotonic()
    os.kill(pids["main"], signal.SIGKILL)
    assert life.exited.at - began < 0.1
    assert alive([pids["plain"]])
    machine.call(life.link.kill)
    assert life.ended().tail == "hello\n"


def test_names_in_shared_memory_are_unlinked_and_foreign_ones_are_kept(machine):
    life = machine.zoo("shared_memory")
    pids = life.running(2)
    names = set((life.folder / "names").read_text().split())
    foreign = f"psm_foreign_{os.getpid()}"
    path = Path(shm.ROOT, foreign)
    path.write_bytes(b"x")
    try:
        os.kill(pids["main"], signal.SIGKILL)
        record = life.ended()
        assert not names & {entry.name for entry in Path(shm.ROOT).iterdir()}
        assert "psm_zoo" in str(record.unlinked)
        assert path.exists()
    finally:
        path.unlink()


# A shim that is killed.


def test_a_killed_shim_leaves_nobody(machine):
    life = machine.zoo("polite")
    pids = life.running(5)
    began = time.monotonic()
    os.kill(life.shim, signal.SIGKILL)
    assert life.wait_for(ShimLost).record.shim.pid == life.shim
    record = life.ended()
    assert not alive(pids.values())
    assert record.empty_at - began < 1.0
    assert record.status is None
    machine.eventually(lambda: set(pids.values()) <= {pid for pid, _ in machine.orphans})


def test_shim_and_daemon_killed_together_leave_nobody_behind(machine):
    daemon, run, born = stand_in(machine, "polite")
    pids = {kind: pid for one in born for kind, pid in one.items()}
    machine.call(machine.run.create)
    os.kill(pids["shim"], signal.SIGSTOP)
    daemon.kill()
    os.kill(pids["shim"], signal.SIGKILL)
    machine.eventually(lambda: not alive([daemon.pid]))
    assert alive([pids[kind] for kind in FOUR])
    assert run.kill_zygotes() == []
    (found,) = run.scan()
    assert (found.alive, found.exit) == (False, None)
    ending = machine.loop.create_task(end_leftovers([found.record], machine.reaper))
    machine.eventually(ending.done)
    assert ending.result()[0].killed == 4
    assert not alive(pids.values())
    run.remove_life(found.directory)
    assert run.scan() == []


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


def test_requests_in_flight_fail_when_the_zygote_dies(machine):
    machine.start_zygote()
    os.kill(machine.zygote.pid, signal.SIGSTOP)
    answer = machine.ask(machine.make(argv=["true"]))
    os.kill(machine.zygote.pid, signal.SIGKILL)
    machine.eventually(answer.done)
    assert "died" in str(answer.exception())
    assert machine.run.scan() == []


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
machine = Machine(RunDir(Path({run!r})))
lives = [machine.zoo({kind!r}, name=f"agg/worker-{{n}}.0#1") for n in range({count})]
print(json.dumps([{{**life.running(5), "shim": life.shim}} for life in lives]), flush=True)
machine.loop.run_forever()
"""


def stand_in(machine, kind, count=1):
    """Another process that plays the daemon; it is killed by the test."""
    run = RunDir(machine.root / "r")
    root = str(Path(__file__).resolve().parents[2])
    code = STAND_IN.format(root=root, run=str(run.root), kind=kind, count=count)
    daemon = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
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
        from orchestrator.host.shim_link import ShimLink  # noqa: PLC0415

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
