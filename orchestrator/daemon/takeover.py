"""One daemon taking over from another that runs: an upgrade without anybody noticing.

The new one has imported all its code and understood everything that is kept before it asks. Then
the old one answers what it is answering, ends without touching a worker, and with it goes the lock.
What only its memory held, which foreground `up` holds which topology, is in its answer. Whatever
goes wrong before that answer leaves the old one as it is; what goes wrong after it leaves the
workers running, and the next daemon adopts them.

Between the two there is a moment without a daemon. A file says so, and verbs that come then wait.
"""

import os
import select
from pathlib import Path

import msgspec

from orchestrator.daemon import deployment
from orchestrator.daemon.client import Client
from orchestrator.daemon.reading import RefusedError, adopted
from orchestrator.host.lock import DaemonLock
from orchestrator.host.rundir import RunDir

ASK = "hand-over"
END_S = 20.0
"""How long the old one may take to end after its answer."""


class TakeoverError(Exception):
    """The old daemon stays. The text is a sentence."""


class Inherited(msgspec.Struct, frozen=True, kw_only=True):
    """What the old daemon knew that isn't on disk.

    `watched`: pids of foreground `up`s, by topology.
    """

    pid: int
    version: str
    on_demand: bool
    watched: dict[str, list[int]] = {}


def take_over(run_dir: RunDir, lock: DaemonLock) -> Inherited:
    """Make the daemon that runs end, and take its lock.

    TakeoverError while the old one still serves; NoDaemonError when there is none; HeldError when
    it doesn't end, or somebody else was quicker.
    """
    misunderstood(run_dir)
    with Client(run_dir.root) as client:
        reply = client.call(ASK)
    if reply.code:
        raise TakeoverError(f"the old daemon stays: {reply.text}")
    inherited = msgspec.convert(reply.data, Inherited)
    _wait_for_end(inherited.pid)
    lock.acquire()
    return inherited


def _wait_for_end(pid: int) -> None:
    """Wait until this process is gone, or for END_S."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(round(END_S * 1000))
    finally:
        os.close(pidfd)


def misunderstood(run_dir: RunDir) -> None:
    """Refuse to take over what this version can't read: TakeoverError with all of it."""
    troubles = []
    for path in sorted(run_dir.topologies.glob("*.json")):
        try:
            adopted(deployment.decode(path.read_bytes()))
        except (OSError, msgspec.MsgspecError, RefusedError) as error:
            troubles.append(f"{path.name}: {error}")
    if troubles:
        raise TakeoverError(f"the old daemon stays: this version can't read {'; '.join(troubles)}")


def announce(path: Path) -> None:
    """Say that another daemon comes at once."""
    path.write_text(str(os.getpid()))
