"""Following a topology on its way up or down, until it is there.

The daemon is asked for a snapshot whenever an event says that something changed, and otherwise
twice a second for the counters that have no events. Ctrl-C and SIGTERM are the same to a verb: the
first asks for an orderly end, the second for a quick one.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from orchestrator.daemon.absence import NoDaemonError
from orchestrator.daemon.client import Client, Subscription, decode_data
from orchestrator.views.banner import find
from orchestrator.views.progress import Progress
from orchestrator.wire.events import Event
from orchestrator.wire.snapshot import ReplicaStatus, Snapshot, TopologyStatus

LOOK_S = 0.5
IDLE_S = 5.0
SETTLE_S = 0.05
"""After an event, the rest of the same change follows at once: wait for it before asking."""
BURST_S = 0.25
"""But no longer than this: in a storm of events the display must go on."""

IN_MOTION = frozenset({"waiting", "starting", "draining", "stopping"})


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Follower:
    """Watches one topology through the daemon."""

    def __init__(self, client: Client, name: str, *, plain: bool = False) -> None:
        self.client = client
        self._name = name
        self._subscription: Subscription = client.subscribe()
        self.progress = Progress(name, sys.stdout, plain=plain)
        self.last = self.look()

    def look(self) -> Snapshot:
        """Ask once. Raises NoDaemonError when the daemon is gone."""
        snapshot: Snapshot = decode_data(self.client.call("status"), Snapshot)
        self.last = snapshot
        return snapshot

    def next(self) -> TopologyStatus | None:
        """Wait for a change or for LOOK_S; None when the topology isn't there any more."""
        self._gather()
        snapshot = self.look()
        self.progress.show(snapshot)
        return self.present(snapshot)

    def _gather(self) -> None:
        """Take the events of one change; none follows on the topology's last."""
        event = self._subscription.next(LOOK_S)
        until = time.monotonic() + BURST_S
        while event is not None and (event.subject, event.what) != (self._name, "gone"):
            left_s = until - time.monotonic()
            event = self._subscription.next(min(SETTLE_S, left_s)) if left_s > 0 else None

    def event(self) -> Event | None:
        """Wait for the next event, without an end but the daemon's; then look."""
        event = self._subscription.next(IDLE_S)
        self.look()
        return event

    def present(self, snapshot: Snapshot) -> TopologyStatus | None:
        """The topology in a snapshot, None when it isn't in it."""
        known = any(topology.name == self._name for topology in snapshot.topologies)
        return find(snapshot, self._name) if known else None

    def until_settled(self, *, strict: bool = False) -> TopologyStatus | None:
        """Wait until it answers, or until nothing moves and it doesn't.

        `strict`: or until one replica has failed, whatever the rest does.
        """
        self.progress.show(self.last)
        while True:
            topology = self.next()
            if topology is None or topology.rollout == "halted":
                return topology
            if strict and has_failed(topology):
                return topology
            if topology.rollout:
                continue
            if topology.health in {"ready", "failed"}:
                return topology
            if topology.health in {"degraded", "stopped"} and not moving(topology):
                return topology

    def until_done(self, replicas: frozenset[str], verb: str) -> TopologyStatus | None:
        """Wait until each of these replicas is where a start, stop or restart leads.

        Or until another verb has overtaken this one: then it will never get there.
        """
        lives = {name: replica.incarnation for name, replica in named(self.last).items()}
        while True:
            topology = self.next()
            now = named(self.last)
            if topology is not None and topology.rollout in {"rolling", "stopping"}:
                continue
            done = topology is None or all(
                name not in now or is_done(now[name], verb, lives.get(name, 0)) for name in replicas
            )
            if done and (topology is None or topology.health != "starting"):
                return topology

    def until_gone(self) -> None:
        """Wait until it is down; the daemon leaving with its last topology counts."""
        with contextlib.suppress(NoDaemonError):
            self.progress.show(self.last)
            while self.next() is not None:
                pass


def named(snapshot: Snapshot) -> dict[str, ReplicaStatus]:
    """Every replica by its id."""
    return {
        f"{topology.name}/{role.name}-{replica.index}": replica
        for topology in snapshot.topologies
        for role in topology.supervised
        for replica in role.replicas
    }


def is_done(replica: ReplicaStatus, verb: str, before: int) -> bool:
    """Say whether a verb has nothing more to wait for. `before`: the incarnation it found."""
    verb = "stop" if verb == "drain" else verb
    wanted = "down" if verb == "stop" else "up"
    if replica.want != wanted:
        return replica.phase not in IN_MOTION
    if verb == "stop":
        return replica.phase in {"stopped", "failed"}
    renewed = verb != "restart" or replica.incarnation > before
    return renewed and replica.phase in {"ready", "completed", "failed"}


def has_failed(topology: TopologyStatus) -> bool:
    """Whether a replica was given up."""
    return any(
        replica.phase == "failed" for role in topology.supervised for replica in role.replicas
    )


def moving(topology: TopologyStatus) -> bool:
    """Whether anything is still on its way somewhere."""
    return any(
        replica.phase in IN_MOTION for role in topology.supervised for replica in role.replicas
    )
