"""Starts daemons in a few milliseconds: has imported all that one needs, and forks on demand.

Each line that it reads is a daemon that is wanted, and each line that it writes is its pid and what
it said about its start: "ready", why not, or nothing where it died first.
"""

import os
import signal
import sys

from orchestrator.daemon.entry import run


def start() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os._exit(run(on_demand=False, ready_fd=theirs))
    os.close(theirs)
    said = b""
    while data := os.read(ours, 4096):
        said += data
    os.close(ours)
    sys.stdout.write(f"{pid} {said.decode()}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for _ in sys.stdin:
        start()
