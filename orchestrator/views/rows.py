"""What there is to show: a snapshot flattened into rows, the same for every view.

Four levels: topology, role, replica, worker. A replica of one worker shows that worker's process
in its own row; only a gang has a row for each member. Rows carry words, not widgets: the status
table, the live progress and the TUI's tree all choose from the same cells.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from orchestrator.views import words
from orchestrator.views.ink import Tone
from orchestrator.wire.snapshot import (
    ReplicaStatus,
    RoleStatus,
    Snapshot,
    TopologyStatus,
    WorkerStatus,
)

Level = Literal["topology", "role", "replica", "worker"]
Key = tuple[Level, str]


class Row(NamedTuple):
    """One thing to show. `id` is what the operator types; `note` is the one line that explains it.

    `workers` are the processes at or below it: their counters add up to those of the row.
    `replicas` counts those of a role.
    """

    level: Level
    id: str
    name: str
    kind: str
    phase: str
    symbol: str
    tone: Tone
    model: str = ""
    since: str = ""
    life: str = ""
    restarts: str = ""
    note: str = ""
    advice: str = ""
    evidence: str = ""
    workers: tuple[WorkerStatus, ...] = ()
    replicas: int = 0

    @property
    def key(self) -> Key:
        """Identity over time. The level belongs to it: a role may be called like a replica."""
        return self.level, self.id

    @property
    def pid(self) -> str:
        """The process, when the row stands for one."""
        return self._only(lambda worker: "" if worker.pid is None else str(worker.pid))

    @property
    def gpus(self) -> str:
        """The GPUs of the row's process."""
        return self._only(lambda worker: ",".join(worker.gpus))

    @property
    def log(self) -> str:
        """Path of the log to look at: the first worker's."""
        return self.workers[0].log if self.workers else ""

    @property
    def inflight(self) -> int:
        """Requests being answered now."""
        return sum(worker.inflight for worker in self.workers)

    @property
    def requests(self) -> int:
        """Requests ever answered in the present lives."""
        return sum(worker.requests for worker in self.workers)

    @property
    def tokens(self) -> int:
        """Tokens ever made in the present lives."""
        return sum(worker.tokens for worker in self.workers)

    def _only(self, cell: Callable[[WorkerStatus], str]) -> str:
        own = self.level == "worker" or (self.level == "replica" and len(self.workers) == 1)
        return cell(self.workers[0]) if own else ""


def rows(snapshot: Snapshot) -> Iterator[Row]:
    """Everything in a snapshot, parents before children, in the daemon's order."""
    for topology in snapshot.topologies:
        yield from topology_rows(topology)


def topology_rows(topology: TopologyStatus) -> Iterator[Row]:
    """One topology and all below it."""
    symbol, tone = words.look(topology.health)
    yield Row(
        level="topology",
        id=topology.name,
        name=topology.name,
        kind=words.engine(topology.engine),
        phase=topology.health,
        symbol=symbol,
        tone=tone,
        note=_summary(topology),
        workers=tuple(w for r in topology.supervised for p in r.replicas for w in p.workers),
    )
    for role in topology.supervised:
        yield _role(topology.name, role)
        for replica in role.replicas:
            yield from _replica(topology.name, role, replica)


def _summary(topology: TopologyStatus) -> str:
    said = words.one_line(topology.reason) or words.endpoint(topology)
    loud = words.engine(topology.engine) if topology.engine == "sim" else ""
    return "  ".join(filter(None, (said, loud)))


def _role(topology: str, role: RoleStatus) -> Row:
    up = sum(1 for replica in role.replicas if replica.phase == "ready")
    whole = up == len(role.replicas)
    return Row(
        level="role",
        id=f"{topology}/{role.name}",
        name=role.name,
        kind=role.kind,
        phase=f"{up}/{len(role.replicas)} ready",
        symbol=" ",
        tone="dim" if whole else "warn",
        model=role.model,
        note=role.model,
        workers=tuple(w for replica in role.replicas for w in replica.workers),
        replicas=len(role.replicas),
    )


def _replica(topology: str, role: RoleStatus, replica: ReplicaStatus) -> Iterator[Row]:
    symbol, tone = words.replica_look(replica)
    name = f"{role.name}-{replica.index}"
    yield Row(
        level="replica",
        id=f"{topology}/{name}",
        name=name,
        kind=role.kind,
        phase=replica.phase,
        symbol=symbol,
        tone=tone,
        model=role.model,
        since=words.age(replica.since_s) if replica.since_s else "",
        life=f"#{replica.incarnation}" if replica.incarnation else "",
        restarts=str(replica.restarts or ""),
        note=words.situation(replica),
        # A ready replica keeps the reason of its last restart, but there is nothing left to do.
        advice="" if tone == "good" else words.one_line(replica.advice),
        # A reason that quotes its evidence has shown it.
        evidence="" if replica.evidence in replica.reason else words.one_line(replica.evidence),
        workers=tuple(replica.workers),
    )
    if len(replica.workers) > 1:
        for worker in replica.workers:
            yield _member(role, replica, worker)


def _member(role: RoleStatus, replica: ReplicaStatus, worker: WorkerStatus) -> Row:
    """Draw a member of a gang. Phases belong to replicas; a member has a process or it has none."""
    alive = worker.pid is not None
    symbol, tone = words.replica_look(replica) if alive else words.look("stopped")
    id_, _, life = worker.id.partition("#")
    return Row(
        level="worker",
        id=id_,
        name="." + id_.rpartition(".")[2],
        kind=role.kind,
        phase="" if alive else "no process",
        symbol=symbol,
        tone=tone,
        life=f"#{life}" if life else "",
        note=words.progress(worker),
        workers=(worker,),
    )
