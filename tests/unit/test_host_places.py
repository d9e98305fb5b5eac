"""Directories, locks, journal, ports and GPUs."""

import fcntl
import os
import socket
import subprocess
import sys

import msgspec
import pytest

from orchestrator.host import framing, gpus, lock, ports, procfs, records, rundir
from orchestrator.host.gpu_provider import provider
from orchestrator.host.identity import Identity
from orchestrator.host.journal import Journal
from orchestrator.wire.ids import LifeId

LIFE = LifeId.parse("agg/worker-0.1#4")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "PATH_MAX", 500)
    made = rundir.RunDir(tmp_path / "run")
    made.create()
    return made


def test_where_things_lie():
    assert str(rundir.default_run_dir({"DYNORCH_RUN_DIR": "/a"})) == "/a"
    assert str(rundir.default_run_dir({"XDG_RUNTIME_DIR": "/run/user/1"})) == "/run/user/1/dynorch"
    assert str(rundir.default_run_dir({})) == f"/tmp/dynorch-{os.getuid()}"
    state = rundir.StateDir(rundir.default_state_dir({"XDG_STATE_HOME": "/s"}))
    assert str(state.log(LIFE)) == "/s/dynorch/logs/agg/worker-0.1.log"
    assert str(state.journal) == "/s/dynorch/journal.jsonl"


def test_a_run_directory_is_private_and_made_again_without_harm(run):
    run.root.chmod(0o755)
    run.create()
    assert run.root.stat().st_mode & 0o777 == 0o700
    assert {link.name for link in run.make_code().iterdir()} == {"orchestrator", "workers"}
    assert (run.code / "orchestrator" / "host" / "zygote.py").exists()
    run.remove_code()
    run.remove_code()
    assert not run.code.exists()


def test_without_a_home_the_state_directory_must_be_named(monkeypatch):
    """As in a container that runs under a uid without a name."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(rundir.DirectoryError, match="set DYNORCH_STATE_DIR"):
        rundir.default_state_dir({})


def test_a_run_directory_that_cannot_be_used_says_what_to_do(tmp_path):
    too_long = rundir.RunDir(tmp_path / ("x" * 60))
    with pytest.raises(rundir.DirectoryError, match="set DYNORCH_RUN_DIR to a shorter one"):
        too_long.create()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(rundir.DirectoryError, match="not a directory"):
        rundir.StateDir(tmp_path / "file").create()
    with pytest.raises(rundir.DirectoryError, match="cannot make"):
        rundir.StateDir(tmp_path / "file" / "below").create()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(rundir.DirectoryError, match="not a directory"):
        rundir.StateDir(tmp_path / "link").create()
    if os.getuid() == 0:
        os.chown(tmp_path / "file", 12345, -1)
        (tmp_path / "other").mkdir()
        os.chown(tmp_path / "other", 12345, -1)
        with pytest.raises(rundir.DirectoryError, match="belongs to uid 12345"):
            rundir.StateDir(tmp_path / "other").create()


def test_every_socket_path_of_a_life_is_short_enough():
    longest = rundir.RunDir(rundir.Path("/" + "x" * (rundir.PATH_MAX - 1)))
    engine_socket = longest.life(LIFE) / "t" / "12345678-1234-1234-1234-123456789abc"
    assert len(str(engine_socket)) == rundir.SOCKET_PATH_MAX


def test_a_life_has_one_directory(run):
    directory = run.make_life(LIFE)
    assert directory == run.life(LIFE) != run.life(LifeId.parse("agg/worker-0.1#5"))
    with pytest.raises(FileExistsError):
        run.make_life(LIFE)
    assert run.scan() == []
    run.remove_rubble()
    assert not directory.exists()


def life_record(**fields):
    return {
        "life": str(LIFE), "tag": f"{LIFE}/n", "boot_id": procfs.boot_id(), "log": "/l",
        "shim": {"pid": os.getpid(), "starttime": procfs.starttime(os.getpid())},
        "started_at": 1.0, "started_wall": 2.0, **fields,
    }  # fmt: skip


def test_a_second_line_completes_a_life_s_record(run):
    directory = run.make_life(LIFE)
    life = directory / "life.json"
    first = msgspec.json.encode({**life_record(), "main": None, "pipe": 0}) + b"\n"
    born = b'{"main": {"pid": 7, "starttime": 8}, "group": "/g", "pipe": 9}\n'
    for second, main, pipe in ((b"", None, 0), (born[:20], None, 0), (born, 7, 9)):
        life.write_bytes(first + second)
        record = records.read_life(directory)
        assert (record.main and record.main.pid, record.pipe) == (main, pipe)


def test_a_life_s_directory_goes_with_whatever_is_in_it(run):
    plain, full = run.make_life(LIFE), run.make_life(LifeId.parse("agg/worker-0.1#5"))
    (plain / "life.json").touch()
    (plain / "link").symlink_to(full)
    (full / "t" / "deep").mkdir()
    (full / "t" / "deep" / "file").touch()
    run.remove_life(plain)
    assert not plain.exists()
    assert (full / "t" / "deep" / "file").exists()
    run.remove_life(full)
    assert list(run.lives.iterdir()) == []


def test_a_scan_tells_the_living_from_the_ended_and_the_lost(run):
    directory = run.make_life(LIFE)
    life = directory / "life.json"
    life.write_bytes(msgspec.json.encode(life_record()))
    (found,) = run.scan()
    assert (found.life, found.alive, found.exit) == (LIFE, True, None)
    life.write_bytes(msgspec.json.encode(life_record(boot_id="another")))
    (found,) = run.scan()
    assert (found.alive, found.exit) == (False, None)
    ended = {**life_record(), "event": "empty", "status": 9, "from_a_later_version": 1}
    (directory / "exit.json").write_bytes(msgspec.json.encode(ended))
    (found,) = run.scan()
    assert found.exit.status == 9
    (directory / "exit.json").write_bytes(b'{"torn')
    assert records.read_exit(directory) is None


def test_old_zygotes_are_killed_and_strangers_are_not(run):
    with (
        subprocess.Popen(["sleep", "1000"]) as zygote,
        subprocess.Popen(["sleep", "1000"]) as else_,
    ):
        run.record_zygote(Identity.of(zygote.pid))
        stale = Identity(procfs.boot_id(), else_.pid, procfs.starttime(else_.pid) - 1)
        (run.zygotes / f"{else_.pid}.json").write_bytes(msgspec.json.encode(stale))
        assert run.kill_zygotes() == []
        assert zygote.wait() == -9
        assert else_.poll() is None
        assert list(run.zygotes.iterdir()) == []
        else_.kill()


def test_statement_58_one_daemon_at_a_time(run):
    first = lock.DaemonLock(run.lock)
    assert lock.holder(run.lock) is None
    first.acquire()
    assert lock.holder(run.lock) == os.getpid()
    with pytest.raises(lock.HeldError, match=f"pid {os.getpid()}"):
        lock.DaemonLock(run.lock).acquire()
    first.release()
    assert lock.holder(run.lock) is None
    lock.DaemonLock(run.lock).acquire()


def test_a_lock_is_waited_for_while_its_dead_holder_goes(tmp_path, monkeypatch):
    """A killed daemon is a zombie at once, and its last thread holds the descriptor a little."""
    path = tmp_path / "daemon.lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    looks = []

    def look(*_):
        looks.append(1)
        if len(looks) == 3:
            os.close(held)

    monkeypatch.setattr(lock.select, "select", look)
    mine = lock.DaemonLock(path)
    mine.acquire()
    assert len(looks) == 3
    mine.release()


def test_a_lock_that_stays_held_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "daemon.lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    monkeypatch.setattr(lock, "DYING_S", 0.02)
    with pytest.raises(lock.HeldError, match="just starting"):
        lock.DaemonLock(path).acquire()
    os.close(held)


def test_statement_57_a_stale_lock_file_blocks_nobody(run):
    stale = Identity(procfs.boot_id(), os.getpid(), 1)
    run.lock.write_bytes(msgspec.json.encode(stale) + b" garbage")
    assert lock.holder(run.lock) is None
    fresh = lock.DaemonLock(run.lock)
    fresh.acquire()
    assert lock.holder(run.lock) == os.getpid()
    fresh.release()


def test_a_journal_keeps_the_newest_within_its_bound(tmp_path):
    journal = Journal(tmp_path / "deep" / "journal.jsonl", max_bytes=100)
    assert journal.last(5) == []
    for number in range(50):
        journal.append(b"%09d" % number)
    assert journal.last(3) == [b"%09d" % number for number in (47, 48, 49)]
    assert journal.last(15) == [b"%09d" % number for number in range(35, 50)]
    assert 10 <= len(journal.last(1000)) <= 20
    assert all(one.stat().st_size <= 100 for one in (tmp_path / "deep").iterdir())


def test_a_journal_is_followed_over_a_rotation(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", max_bytes=100)
    for number in range(7):
        journal.append(b"%09d" % number)
    position = journal.end()
    assert list(journal.follow(position)) == []
    for number in range(7, 15):
        journal.append(b"%09d" % number)
    assert list(journal.follow(position)) == [b"%09d" % number for number in range(7, 15)]
    assert list(journal.follow(position)) == []


def test_a_torn_line_stays_alone(tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b"whole\nto")
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(b"next")
    assert journal.last(5) == [b"whole", b"to", b"next"]


def test_a_full_disk_does_not_stop_a_journal():
    journal = Journal(rundir.Path("/dev/full"))
    journal.append(b"x")
    assert journal.dropped == 1


def test_a_port_in_use_is_named_with_its_holder():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        text = ports.trouble_with(port, "127.0.0.1")
        assert text.startswith(f"port {port} is in use by pid {os.getpid()} (")
    assert ports.trouble_with(port, "127.0.0.1") == ""
    assert "isn't an address" in ports.trouble_with(port, "192.0.2.1")


def test_a_machine_without_a_gpu_has_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert provider({}).gpus() == []


class FakeNvml:
    class NVMLError(Exception):
        pass

    def __getattr__(self, name):
        answers = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetUUID": b"GPU-1", "nvmlDeviceGetName": "H100",
            "nvmlDeviceGetMigMode": [0, 0],
        }  # fmt: skip

        if name not in answers:
            raise AttributeError(name)

        def call(*_):
            return answers[name]

        return call

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802 - NVML's name
        if index == 1:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802 - NVML's name
        return type("Info", (), {"total": 80 << 30, "used": 1, "free": 2})()


def test_a_gpu_that_does_not_answer_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert provider({}).gpus() == [gpus.Gpu(0, "GPU-1", "H100", 80 << 30)]
    assert provider({}).links() == []


def test_frames_survive_any_chopping():
    messages = [{"a": 1, "blob": b"\x00\xff"}, {"env": {"A": "\udc80"}}]
    stream = b"".join(framing.pack(message) for message in messages)
    unpacker = framing.Unpacker()
    assert [m for n in range(len(stream)) for m in unpacker.feed(stream[n : n + 1])] == messages
    assert framing.Unpacker().feed(stream) == messages
    with pytest.raises(ValueError, match="bytes"):
        framing.Unpacker().feed(b"\xff\xff\xff\xff")
