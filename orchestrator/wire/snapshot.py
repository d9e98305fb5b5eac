"""What is running now, as the daemon sees it: the one picture that all views are drawn from.

`dynorch status --json` prints it as it is; the table, `top` and the live progress of `up` and
`down` only render it. So they can't disagree. Its field names are an interface: scripts read them,
hence fields are added, never renamed.

It is a snapshot, never a difference: whoever missed one is right again with the next. When no
daemon runs, the client builds one from the files that the shims left behind, with `pid` null.
"""

import msgspec


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon itself. `pid` is None when none runs; then `uptime_s` is 0.

    `on_demand`: it was started by a verb and ends with its last topology.
    """

    pid: int | None
    version: str
    run_dir: str
    state_dir: str
    uptime_s: float = 0.0
    on_demand: bool = False


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """What the phase leads to if nothing happens before, and when.

    `what` reads before "in 3 s": "next start", "gives up starting", "kills the rest".
    """

    what: str
    in_s: float


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process that we start. `id` is the life's id; `pid` is None when there is no process.

    `progress` is what a starting worker says that it does, or a plain command's last STATUS;
    `percent` how far it is (0 to 100). `requests` and `tokens` only grow in one life. `log` is a
    path; it exists once there was output.
    `log_dropped_bytes`: output of this life that couldn't be written there.
    `ports`: "http" of a frontend; "rendezvous" of a gang, another one in each incarnation.
    """

    id: str
    pid: int | None = None
    gpus: list[str] = []
    ports: dict[str, int] = {}
    engine: str = ""
    progress: str = ""
    percent: float | None = None
    inflight: int = 0
    requests: int = 0
    tokens: int = 0
    log: str = ""
    log_dropped_bytes: int = 0


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One complete copy of a role.

    `phase` is one of the eight phases; `cause` is a value of `core.reasons.Cause`; `reason` is its
    sentence, empty when all is well; `advice` says what to do; `evidence` is the line of log or
    the fact that it was concluded from. `since_s`: how long it has been in this phase. A ready
    replica may have a reason too: that of its last restart. `routable`: ready, and it answers.
    """

    index: int
    phase: str
    want: str
    cause: str = ""
    reason: str = ""
    advice: str = ""
    evidence: str = ""
    incarnation: int = 0
    restarts: int = 0
    since_s: float = 0.0
    routable: bool = False
    deadline: Deadline | None = None
    workers: list[WorkerStatus] = []


class RoleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A role, or a plain command: then `kind` is "process" and `model` is empty."""

    name: str
    kind: str
    model: str = ""
    replicas: list[ReplicaStatus] = []


class TopologyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A whole deployment.

    `health` is ready, starting, degraded, failed, stopped or stopping; without a daemon it is
    unsupervised, with phases "running" and kinds "unknown". `reason` is one line, empty when all is
    well; `models` are those that answer now; `endpoint` is empty without a frontend.

    `rollout` is "rolling" while a change is being applied, "halted" when a replica failed with its
    new configuration, "stopping" while parts stop in order, else empty; `rollout_note` says how far
    it is, or why. `scaled`: where numbers of replicas aren't those of the file, one sentence for
    each role.
    """

    name: str
    health: str
    reason: str = ""
    file: str = ""
    engine: str = ""
    endpoint: str = ""
    models: list[str] = []
    roles: list[RoleStatus] = []
    processes: list[RoleStatus] = []
    rollout: str = ""
    rollout_note: str = ""
    scaled: list[str] = []

    @property
    def supervised(self) -> list[RoleStatus]:
        """Roles and plain commands: they share one namespace."""
        return [*self.roles, *self.processes]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one daemon supervises."""

    daemon: DaemonStatus
    topologies: list[TopologyStatus] = []

    def running(self) -> list[WorkerStatus]:
        """List the workers that have a process."""
        return [
            worker
            for topology in self.topologies
            for role in topology.supervised
            for replica in role.replicas
            for worker in replica.workers
            if worker.pid is not None
        ]


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Snapshot).decode
