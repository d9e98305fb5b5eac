"""An idle daemon sleeps: no wake-up of its own, however many it looks after."""

import os
import select
from pathlib import Path

from tests.eventually import eventually

SLEEPERS = 50
QUIET_S = 5


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


def test_a_daemon_with_fifty_sleepers_makes_no_wakeups_of_its_own(dynorch):
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
    assert len(dynorch.topology()["processes"]) == SLEEPERS
