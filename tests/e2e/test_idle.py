"""An idle daemon sleeps: no wake-up of its own, however many it looks after."""

import contextlib
import os
import select
import signal
from pathlib import Path

from tests.eventually import eventually

SLEEPERS = 200
QUIET_S = 5
PSS_KIB_MAX = 40 * 1024

KILLS = 200
KILLED = """
name = "kills"
restart = { backoff-initial = "0s", intensity = 1000 }
[processes.one]
command = ["sh", "-c", "echo $$ > {words}; exec sleep 100000"]
start = { settle = "0s" }
"""


def switches(pid: int) -> int:
    """Voluntary context switches of all threads, as the kernel counts them."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def lives_on(pid: int, seconds: float) -> bool:
    """Watch a process for so long; False if it ends meanwhile."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = poll.poll(seconds * 1000)
    os.close(pidfd)
    return not ended


def pss_kib(pid: int) -> int:
    """Memory with its share of what other processes use, too: the interpreter's code, mostly."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_statement_59_an_idle_daemon_with_two_hundred_sleepers_never_wakes_up(dynorch):
    text = 'name = "idle"\n' + "".join(
        f'[processes.s{number}]\ncommand = ["sleep", "100000"]\n' for number in range(SLEEPERS)
    )
    dynorch("up", "-d", dynorch.file(text))
    pid = dynorch.daemon_pid()

    def quiet():
        before = switches(pid)
        assert lives_on(pid, QUIET_S)
        return switches(pid) == before

    # The first window may still hold the end of the answer to `status`.
    eventually(quiet, within_s=3 * QUIET_S)
    assert pss_kib(pid) < PSS_KIB_MAX
    assert len(dynorch.topology()["processes"]) == SLEEPERS


def test_statement_60_two_hundred_kills_are_two_hundred_restarts(dynorch):
    """How fast that is says benchmarks/supervise.py; here, that not one is missed or done twice."""
    words = dynorch.root / "words"
    os.mkfifo(words)
    ear = os.open(words, os.O_RDWR | os.O_NONBLOCK)
    dynorch("up", "-d", dynorch.file(KILLED.replace("{words}", str(words))))
    born = []

    def next_one():
        for line in os.read(ear, 4096).split():
            born.append(int(line))
        return len(born)

    def heard(count):
        with contextlib.suppress(BlockingIOError):
            return next_one() >= count
        return False

    for count in range(1, KILLS + 1):
        eventually(lambda count=count: heard(count), every_s=0.001)
        os.kill(born[-1], signal.SIGKILL)
    eventually(lambda: heard(KILLS + 1))
    os.close(ear)
    replica = eventually(lambda: (r := dynorch.replica("one"))["phase"] == "ready" and r)
    assert (replica["restarts"], replica["incarnation"]) == (KILLS, KILLS + 1)
    assert replica["workers"][0]["pid"] == born[-1]
    assert len(set(born)) == len(born) == KILLS + 1
