"""One life from its first instruction to its last byte of log, with real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.host import procfs
from orchestrator.host.records import MainExited, StateSeen, TreeEmpty
from tests.e2e.machine import Machine
from tests.eventually import in_time


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


# The log.


def cpu_s(pid: int) -> float:
    """What a process has had of the processors, 0 when it is gone."""
    line = procfs.read(f"/proc/{pid}/stat") or b""
    return sum(map(int, line.rpartition(b")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


def test_statement_63_no_byte_is_lost_over_rotations(machine):
    """100 MB in lines of 100 bytes; every file begins where the one before it ended."""
    total = 100_000_000
    life = machine.zoo("lines", total, 100, 65536, log_max_bytes=15 << 20, log_backups=20)
    busy_s = 0.0

    def over():
        nonlocal busy_s
        busy_s = cpu_s(life.shim) or busy_s
        return life.last(TreeEmpty)

    record = machine.eventually(over, 120)
    assert total / busy_s >= 100e6  # bytes in a second of the shim's, however many others run
    files = sorted(life.log.parent.glob(f"{life.log.name}.*"), key=lambda p: -int(p.suffix[1:]))
    assert len(files) >= 5
    number = 0
    for path in [*files, life.log]:
        content = path.read_bytes()
        if path == life.log:
            assert content.endswith(b"\nthe last line")
            content = content.removesuffix(b"the last line")
        count = len(content) // 100
        assert content == b"".join(b"%099d\n" % n for n in range(number, number + count))
        number += count
    assert number * 100 >= total
    assert record.log_bytes == number * 100 + len("the last line")
    assert record.dropped_bytes == 0
    assert record.tail.endswith("the last line")


@pytest.fixture
def small_disk(machine):
    """A file system of 1 MB."""
    folder = machine.root / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("NOT TESTED HERE: mounting a small file system isn't permitted; run as root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_output_and_nothing_else(machine, small_disk):
    life = machine.zoo("lines", 4 << 20, log_path=str(small_disk / "w.log"))
    record = life.ended()
    assert record.status == 0
    assert record.dropped_bytes > 2 << 20
    assert record.log_bytes + record.dropped_bytes >= 4 << 20


def test_statement_64_a_full_disk_is_counted_and_writing_resumes(machine, small_disk):
    log, filler = small_disk / "w.log", small_disk / "filler"
    life = machine.zoo("speaker", log_path=str(log))
    pid = life.running()["main"]

    def says(number):
        os.kill(pid, signal.SIGUSR1)
        machine.eventually((life.folder / f"said-{number}").exists)

    says(1)
    machine.eventually(lambda: b"line 1 " in log.read_bytes())
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill(file)
    says(2)
    lost = machine.eventually(lambda: life.last(StateSeen).dropped_bytes)
    filler.unlink()
    says(3)
    machine.eventually(lambda: b"line 3 " in log.read_bytes())
    text = log.read_bytes()
    assert b"bytes of output are missing here: No space left on device" in text
    assert text.startswith(b"line 1 ")
    machine.call(life.link.stop, 10.0, 0.0)
    record = life.ended()
    assert record.dropped_bytes == lost
    assert record.log_bytes + lost == 3 * 10_000


def fill(file):
    while True:
        file.write(b"x" * 4096)


def test_statement_65_a_log_that_logrotate_moved_is_opened_anew(machine):
    life = machine.born(argv=["sh", "-c", "while :; do echo tick; sleep 0.05; done"])
    machine.eventually(lambda: life.log.exists() and life.log.stat().st_size > 20)
    moved = life.log.with_suffix(".moved")

    def noticed_after() -> float:
        life.log.rename(moved)
        began = time.monotonic()
        machine.eventually(life.log.exists)
        return time.monotonic() - began

    in_time(noticed_after, 1.0)
    machine.eventually(lambda: life.log.stat().st_size > 20)
    size = moved.stat().st_size
    before = life.log.stat().st_size
    machine.eventually(lambda: life.log.stat().st_size > before)
    assert moved.stat().st_size == size


# The beginning.


@pytest.mark.parametrize(
    ("wanted", "code", "text", "status"),
    [
        ({"argv": ["no-such-program"]}, "ENOENT", "cannot run 'no-such-program'", 127),
        ({"argv": ["/etc/passwd"]}, "EACCES", "cannot run '/etc/passwd'", 126),
        ({"argv": ["true"], "cwd": "/no/such/place"}, "ENOENT", "directory /no/such/place", 127),
        ({"entry": "no.module:main"}, "", "cannot import no.module:main: ModuleNotFoundError", 1),
        ({"entry": "json:nothing"}, "", "AttributeError", 1),
    ],
)
def test_a_worker_that_cannot_begin_says_why(machine, wanted, code, text, status):
    record = machine.born(**wanted).ended()
    assert record.exec_error.code == code
    assert text in record.exec_error.text
    assert os.waitstatus_to_exitcode(record.status) == status


def test_a_file_that_is_no_program_says_so(machine):
    file = machine.root / "garbage"
    file.write_bytes(b"\0\1\2\3")
    file.chmod(0o700)
    record = machine.born(argv=[str(file)]).ended()
    assert record.exec_error.code == "ENOEXEC"


def test_a_command_begins_in_a_clean_world(machine):
    code = (
        "import os, signal, json; print(json.dumps(dict("
        "env=dict(os.environ), cwd=os.getcwd(), fds=sorted(map(int, os.listdir('/proc/self/fd'))),"
        "blocked=[int(s) for s in signal.pthread_sigmask(0, [])], group=os.getpgrp() - os.getpid(),"
        "term=signal.getsignal(15) == signal.SIG_DFL)))"
    )
    life = machine.born(
        argv=[sys.executable, "-I", "-S", "-c", code], env={"A": "b"}, cwd="/usr", nofile=123
    )
    world = json.loads(life.ended().tail)
    assert world["env"].pop("DYNORCH_TREE").startswith("agg/worker-0.0#1/test-")
    assert world["env"].pop("LC_CTYPE", "") is not None
    assert world["env"] == {"A": "b", "SPT_NOENV": "1"}
    assert world["cwd"] == "/usr"
    assert world["fds"] == [0, 1, 2, 3]  # 3 is the listing itself
    assert (world["blocked"], world["group"], world["term"]) == ([], 0, True)


def test_an_entry_is_called_with_its_blob_in_its_own_world(machine):
    folder = machine.root / "code"
    folder.mkdir()
    (folder / "place.py").write_text(
        "import os, sys\n"
        "def main(blob):\n"
        "    print(blob, os.environ['A'], sys.argv)\n"
        "    return 5\n"
    )
    life = machine.born(entry="place:main", blob=b"\x00\xff", path=[str(folder)], env={"A": "b"})
    record = life.ended()
    assert record.tail == "b'\\x00\\xff' b ['agg/worker-0.0#1']\n"
    assert record.status == 5 << 8
    assert record.exec_error is None


def test_forked_workers_carry_title_and_tag(machine):
    folder = machine.root / "code"
    folder.mkdir()
    (folder / "place.py").write_text(
        "import os, signal\ndef main(blob):\n    os.fork()\n    signal.pause()\n"
    )
    life = machine.born(entry="place:main", path=[str(folder)])
    machine.eventually(lambda: len(procfs.descendants(life.shim)) == 2)
    for one in procfs.descendants(life.shim):
        assert procfs.cmdline(one.pid).rstrip(b"\0") == b"dynorch: agg/worker-0.0#1"
        assert b"DYNORCH_TREE=agg/worker-0.0#1/test--" in procfs.read(f"/proc/{one.pid}/environ")
    assert procfs.cmdline(life.shim).rstrip(b"\0") == b"dynorch: shim agg/worker-0.0#1"
    assert procfs.cmdline(machine.zygote.pid).rstrip(b"\0") == b"dynorch: zygote bare"


def test_a_life_without_its_directory_is_refused(machine):
    spawn = machine.make(argv=["true"])
    machine.run.remove_life(Path(spawn.directory))
    answer = machine.ask(spawn)
    machine.eventually(answer.done)
    assert "No such file or directory" in str(answer.exception())
    machine.zoo("sleeper", name="agg/worker-1.0#1").running()


# The socket.


def test_several_clients_are_told_and_nonsense_is_cut_off(machine):
    life = machine.zoo("sleeper")
    life.running()
    path = f"{life.spawn.directory}/s"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    peers = []
    for _ in range(2):
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(path)
        peer.settimeout(10)
        assert json.loads(peer.recv(65536))["phase"] == "running"
        peers.append(peer)
    peers[0].send(b"nonsense")
    assert peers[0].recv(65536) == b""
    peers[1].send(b'{"op": "dance"}')
    assert json.loads(peers[1].recv(65536))["event"] == "refused"
    machine.call(life.link.stop, 10.0, 0.0)
    said = [json.loads(peers[1].recv(65536))["event"] for _ in range(3)]
    assert said == ["state", "exited", "empty"]


def test_a_broken_connection_is_made_again(machine):
    life = machine.zoo("sleeper")
    life.running()
    life.wait_for(StateSeen)
    life.events.clear()
    life.link._socket.shutdown(socket.SHUT_RDWR)
    assert life.wait_for(StateSeen).phase == "running"
    machine.call(life.link.stop, 10.0, 0.0)
    assert life.ended().asked


def test_idle_processes_do_not_wake_up(machine):
    lives = [machine.zoo("sleeper", name=f"agg/worker-{n}.0#1") for n in range(3)]
    for life in lives:
        life.running()
    pids = [machine.zygote.pid, *(life.shim for life in lives)]
    machine.eventually(lambda: all(procfs.stat(pid).state == "S" for pid in pids))

    def switches():
        return [procfs.read(f"/proc/{pid}/status").split(b"voluntary_ctxt_switches:")[1].split()[0]
                for pid in pids]  # fmt: skip

    before, until = switches(), time.monotonic() + 1.0
    machine.eventually(lambda: time.monotonic() > until)
    assert switches() == before


def test_states_are_seen_in_order(machine):
    life = machine.zoo("polite")
    life.running(5)
    machine.call(life.link.stop, 10.0, 0.1)
    life.ended()
    phases = [one.phase for one in life.events if isinstance(one, StateSeen)]
    kinds = [type(one) for one in life.events if not isinstance(one, StateSeen)]
    assert phases == ["running", "stopping", "killing"]
    assert kinds == [MainExited, TreeEmpty]


# What it says of itself.


def say(path, *parts, fds=()):
    """Say something on a life's notify socket, without being of that life."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.connect(str(path))
        socket.send_fds(one, [part.encode() for part in parts], list(fds))


SAYS = """
import os, signal, socket, sys
says = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
says.connect(os.environ["NOTIFY_SOCKET"])
if os.fork() == 0:
    says.send(sys.argv[1].encode())
    open("child", "w").close()
    signal.pause()
while not os.path.exists("child"):
    pass
says.send(b"STATUS=half\\tway\\nEXTEND_TIMEOUT_USEC=5000000\\nNONSENSE\\nEXTEND_TIMEOUT_USEC=-1")
read, write = os.pipe()
socket.send_fds(says, [b"BARRIER=1"], [write])
os.close(write)
os.read(read, 1)
says.send(b"WATCHDOG=1\\nSTATUS=heard\\n")
signal.pause()
"""


@pytest.mark.parametrize("access", ["main", "all"])
def test_what_a_command_says_is_told_as_facts_and_only_its_own_tree_is_believed(machine, access):
    folder = machine.root / access
    folder.mkdir()
    spawn = machine.make(
        argv=[sys.executable, "-I", "-S", "-c", SAYS, "READY=1"], cwd=str(folder), notify=access
    )
    path = Path(spawn.directory) / "n"
    spawn.env["NOTIFY_SOCKET"] = str(path)
    life = machine.follow(spawn)
    machine.eventually(lambda: said(life) and said(life).status == "heard")
    facts = said(life)
    assert path.stat().st_mode & 0o777 == 0o600
    assert facts.ready == (access == "all")
    assert bool(facts.refused) == (access == "main")
    now = time.monotonic()
    assert now - 60 < facts.alive_at <= now
    assert facts.alive_at < facts.extended_until < now + 5

    # We aren't of that tree: nothing is taken, and no descriptor kept.
    before = len(procfs.open_fds(life.shim))
    for _ in range(30):
        say(path, "READY=1\nSTOPPING=1\nSTATUS=evil", fds=[0, 0])
    machine.call(life.link.ask_state)
    machine.eventually(lambda: said(life).refused == os.getpid())
    assert (said(life).stopping, said(life).status) == (False, "heard")
    machine.eventually(lambda: len(procfs.open_fds(life.shim)) <= before)

    # The next daemon is told the same.
    machine.call(life.link.close)
    life.events.clear()
    machine.call(life.follow)
    assert life.wait_for(StateSeen).said.ready == (access == "all")


def said(life):
    seen = life.last(StateSeen)
    return seen.said if seen else None
