"""One supervised replica as the daemon holds it: its spec, its state, and what was last heard.

The *state* belongs to the core and changes only in `Supervisor`. The *spec* says what its present
life was started with; where a changed file asks for something else, `next` is what its next life
will be, and takes the spec's place as soon as nothing of the present one is left. What workers
said of themselves (`heard`) decides nothing; it is shown, and it is forgotten with the incarnation
it was said in.
"""

from dataclasses import dataclass, field

from orchestrator.core.devices import Device
from orchestrator.core.fleet import Need
from orchestrator.core.groups import Bond
from orchestrator.core.liveness import Watch
from orchestrator.core.plan import PlannedWorker
from orchestrator.core.policy import Policy
from orchestrator.core.probe import Probe
from orchestrator.core.stall import Stall
from orchestrator.core.state import State, routable
from orchestrator.host.records import Said
from orchestrator.wire.ids import LifeId, ReplicaId
from orchestrator.wire.messages import Beat, Hello


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """What a replica is: decided by the topology and the placement.

    `members` are the planned workers in member order, `logs` their log files; `needs` is what must
    be there before it starts, `bonds` with whom it goes down. `cwd`: the topology file's directory,
    where relative paths begin. `tree`: what the file wants a worker's processes to be held together
    by. `ready`, `live`: how a plain command is asked; `watchdog_s`: how often it must say that it
    lives.
    """

    id: ReplicaId
    kind: str
    model: str
    policy: Policy
    members: tuple[PlannedWorker, ...]
    logs: tuple[str, ...]
    log_max_bytes: int
    log_backups: int
    cwd: str
    needs: tuple[Need, ...] = ()
    tree: str = "auto"
    bonds: tuple[Bond, ...] = ()
    ready: Probe | None = None
    live: Probe | None = None
    watchdog_s: float | None = None

    @property
    def notify(self) -> str:
        """Whose words on a notify socket count: "main", "all", or empty where there is none."""
        if self.ready is not None and self.ready.kind == "notify":
            return self.ready.target
        return "main" if self.watchdog_s is not None else ""


@dataclass(slots=True)
class Heard:
    """What one member's present life said of itself, its shim of it, and the ports it was given.

    `log_from`: where in its log file this life begins. `status`: main's wait status, once it ended.
    """

    incarnation: int
    hello: Hello | None = None
    beat: Beat | None = None
    watch: Watch | None = None
    stall: Stall | None = None
    progress: str = ""
    percent: float | None = None
    main_pid: int | None = None
    foreign: str = ""
    log_dropped_bytes: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    log_from: int = 0
    said: Said | None = None
    status: int | None = None


@dataclass(slots=True)
class Unit:
    """Spec, state, and the latest words of each member, by member index."""

    spec: UnitSpec
    state: State
    heard: dict[int, Heard] = field(default_factory=dict)
    next: UnitSpec | None = None

    @property
    def id(self) -> ReplicaId:
        """The replica's id."""
        return self.spec.id

    @property
    def coming(self) -> UnitSpec:
        """What its next life will be."""
        return self.next or self.spec

    @property
    def policy(self) -> Policy:
        """The rules for what is decided now. A start is decided by those of the life it begins."""
        return self.coming.policy

    @property
    def routable(self) -> bool:
        """It may be sent requests."""
        return routable(self.state)

    def life(self, member: int) -> LifeId:
        """The id of a member's present life."""
        return self.id.life(member, self.state.incarnation)

    def of(self, life: LifeId) -> Heard | None:
        """What this life said; None when it isn't the present one."""
        if life.of != self.id or life.incarnation != self.state.incarnation:
            return None
        if life.member >= len(self.state.members):
            return None
        heard = self.heard.get(life.member)
        if heard is None or heard.incarnation != life.incarnation:
            heard = self.heard[life.member] = Heard(life.incarnation)
        return heard


def foreign(who: str, protocol: int, known: tuple[int, int]) -> str:
    """Say that a process of another version runs here that we may not understand."""
    return f"its {who} speaks protocol {protocol}, and this daemon {known[0]} and {known[1]}"


def uuids_of(unit: Unit) -> frozenset[str]:
    """Every device that a unit's members were given."""
    return frozenset(uuid for member in unit.spec.members for uuid in member.gpu_uuids)


def devices_of(unit: Unit) -> tuple[Device, ...]:
    """They, with the indices that people know them by."""
    return tuple(
        Device(uuid, index)
        for member in unit.spec.members
        for uuid, index in zip(member.gpu_uuids, member.gpus, strict=True)
    )
