"""Whom we mean: /proc, identities, trees, and what must never be hit."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.host import orphans, procfs, records, shm, title, tree
from orchestrator.host.identity import Identity
from orchestrator.host.spawn import Spawn
from tests.eventually import eventually

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture
def child():
    """A process that only waits to be killed."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)
    return pid


def test_a_name_with_anything_in_it_does_not_shift_the_fields():
    line = b"42 (a) b (c)) S 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0"
    stat = procfs.Stat(42, line)
    assert (stat.name, stat.state, stat.ppid, stat.pgid, stat.sid) == ("a) b (c)", "S", 7, 8, 9)
    assert stat.starttime == 4711


def test_we_see_ourselves_and_our_child(child):
    assert procfs.stat(os.getpid()).alive
    assert child.pid in {one.pid for one in procfs.descendants(os.getpid())}
    assert procfs.stat(child.pid).ppid == os.getpid()


def test_nobody_is_no_exception():
    gone = zombie()
    os.waitpid(gone, 0)
    assert procfs.stat(gone) is None
    assert (procfs.cmdline(gone), procfs.children(gone), procfs.open_fds(gone)) == (b"", [], [])
    assert not procfs.environ_has(gone, b"A=b")


def test_statement_11_a_zombie_is_not_alive():
    pid = zombie()
    try:
        identity = Identity.of(pid)
        assert not procfs.stat(pid).alive
        assert not identity.is_alive()
        assert identity.open() is None
        assert tree.kill_exactly(procfs.stat(pid)) is tree.Outcome.GONE
    finally:
        os.waitpid(pid, 0)


def test_statement_08_a_recycled_pid_is_never_signalled(child):
    one = procfs.stat(child.pid)
    one.starttime -= 1
    assert tree.kill_exactly(one) is tree.Outcome.GONE
    other = Identity(procfs.boot_id(), child.pid, one.starttime)
    assert other.open() is None
    assert other.kill(0.0)
    assert Identity("another boot", child.pid, one.starttime + 1).open() is None
    assert child.poll() is None


def test_an_identity_kills_what_it_means(child):
    assert Identity.of(child.pid).kill(within_s=10)
    assert child.wait() == -signal.SIGKILL


def test_descendants_in_a_snapshot():
    def stat(pid, ppid):
        return procfs.Stat(pid, b"%d (x) S %d 1 1 " % (pid, ppid) + b"0 " * 16)

    family = {one.pid: one for one in (stat(2, 1), stat(3, 2), stat(4, 3), stat(5, 1), stat(6, 6))}
    assert [one.pid for one in procfs.below({2}, family)] == [3, 4]
    assert {one.pid for one in procfs.below({1}, family)} == {2, 3, 4, 5}


class Quiet(shm.Leftovers):
    def __init__(self):
        super().__init__(0.0)

    def note(self, pid):
        pass


def test_a_pass_kills_once_and_then_waits(child):
    kill = tree.TreeKill(Quiet(), 0.0)
    members = [procfs.stat(child.pid)]
    assert kill.run_pass(members, 0.0) == 1
    assert kill.run_pass(members, 0.0) == 0
    assert kill.killed == 1
    child.wait()
    assert kill.run_pass([], 0.0) == 0
    assert kill.stuck == []


def test_those_who_flee_are_met_by_a_group_kill(child, monkeypatch):
    groups = []
    monkeypatch.setattr(os, "killpg", lambda *args: groups.append(args))
    fled = procfs.stat(child.pid)
    fled.starttime -= 1
    fled.pgid = 4711
    kill = tree.TreeKill(Quiet(), 0.0)
    for _ in range(tree.STORM_PASSES):
        assert kill.run_pass([fled], 0.0) == 1
    assert groups == []
    kill.run_pass([fled], 0.0)
    assert groups == [(4711, signal.SIGKILL)]
    assert kill.killed == 0


def test_a_resource_tracker_is_spared_for_its_time():
    code = "import signal; signal.pause()  # multiprocessing.resource_tracker"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) as tracker:
        eventually(lambda: procfs.cmdline(tracker.pid))  # exec isn't quite over when Popen returns
        kill = tree.TreeKill(Quiet(), 100.0)
        members = [procfs.stat(tracker.pid)]
        assert kill.run_pass(members, 100.0 + tree.SPARE_S / 2) == 0
        assert kill.stuck == members
        assert kill.run_pass(members, 100.0 + tree.SPARE_S) == 1
        assert tracker.wait() == -signal.SIGKILL


def test_the_stuck_are_named(child):
    text = tree.describe([procfs.stat(child.pid)])
    assert text.startswith(f"{child.pid} (sleep) state ")
    assert tree.describe([procfs.stat(child.pid)] * 10).endswith(" and 2 more")


def lost(**fields):
    wanted = {
        "life": "a/b-0.0#1", "tag": "a/b-0.0#1/n", "boot_id": procfs.boot_id(),
        "shim": records.Process(2**22 + 1, 1), "log": "/dev/null", "started_at": 0.0,
        "started_wall": 0.0,
    }  # fmt: skip
    return records.LifeRecord(**{**wanted, **fields})


def found_by(record, owned=()):
    return {one.pid for one in orphans.Search(record, lambda: set(owned)).members()}


def test_orphans_are_found_by_session_pipe_tag_or_main():
    # Other tests may have made this process a subreaper, with dead daemons for children.
    before = found_by(lost())
    code = "import signal; signal.pause()"
    argv = [sys.executable, "-I", "-S", "-c", code]
    read, write = os.pipe()
    tag = title.entry("a/b-0.0#1/n").decode().partition("=")
    made = [
        subprocess.Popen(argv, start_new_session=True),
        subprocess.Popen(argv, stdout=write),
        subprocess.Popen(argv, env={tag[0]: tag[2]}),
        subprocess.Popen(argv),
    ]
    leader, piped, tagged, other = (process.pid for process in made)
    try:
        mine = found_by(lost(pipe=os.fstat(read).st_ino), {leader} | before)
        assert mine == {piped, tagged}
        main = records.Process(other, procfs.starttime(other))
        assert other in found_by(lost(main=main))
        session = records.Process(leader, procfs.starttime(leader))
        assert leader in found_by(lost(shim=session))
        recycled = records.Process(leader, procfs.starttime(leader) - 1)
        assert leader not in found_by(lost(shim=recycled), {leader})
    finally:
        for process in made:
            process.kill()
            process.wait()
        os.close(read)
        os.close(write)


def test_a_tag_has_one_length_in_the_environment():
    spawn = Spawn(
        life="a/b-0.0#1", nonce="n", directory="/d", log_path="/l", env={"A": "b"}, argv=["x"]
    )
    assert len(spawn.environment()["DYNORCH_TREE"]) == title.TAG_BYTES
    assert title.entry(spawn.tag) == b"DYNORCH_TREE=" + spawn.environment()["DYNORCH_TREE"].encode()
    assert Spawn.from_fields(spawn.to_fields()).to_fields() == spawn.to_fields()


def test_shared_memory_is_removed_only_when_it_is_surely_ours():
    names = [f"psm_unit_{os.getpid()}", f"weights_{os.getpid()}", f"ours_{os.getpid()}"]
    paths = [Path(shm.ROOT, name) for name in names]
    for path in paths:
        path.write_bytes(b"x" * 4096)
    try:
        later = shm.Leftovers(paths[1].stat().st_ctime + 10)
        later._noted = {names[0]: True, names[1]: True}
        assert later.remove() == [names[0]]
        ours = shm.Leftovers(paths[1].stat().st_ctime - 10)
        ours._noted = {names[1]: False, names[2]: True}
        assert ours.remove() == [names[2]]
        assert paths[1].exists()
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


LIGHT = """
import sys
sys.path.insert(0, {root!r})
import orchestrator.host.zygote
heavy = {{"typing", "subprocess", "logging", "asyncio", "threading", "pathlib", "msgspec", "zmq",
          "multiprocessing", "dataclasses", "inspect", "tempfile", "shutil", "random"}}
print(sorted(heavy & set(sys.modules)))
"""


def test_what_runs_in_zygote_and_shim_is_light_and_needs_no_site():
    argv = [sys.executable, "-I", "-S", "-c", LIGHT.format(root=ROOT)]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"
