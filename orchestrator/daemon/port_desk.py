"""Which ports a worker is born with: its own for as long as it exists, its gang's for one life.

A worker's own ports (`side-channel`) are the same in each of its lives, so whoever remembers them
is right again after a restart, unless a stranger listens there meanwhile: then it gets others, and
an event says so. Where a gang meets is another port in each incarnation: an old rank
that still knocks must not be let in. It is taken with the first member's birth and rests when the
last member's tree is empty. What lives knows its ports by their owners' names, so a daemon that
takes over finds them again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from orchestrator.core.plan import PlannedWorker
from orchestrator.core.vllm_flags import RENDEZVOUS
from orchestrator.daemon.unit import Unit
from orchestrator.host.port_table import PortTable
from orchestrator.wire.config import Gang
from orchestrator.wire.ids import LifeId, ReplicaId

LOOPBACK = "127.0.0.1"


def gang_of(life: LifeId) -> str:
    """Name a life's gang: one incarnation of a replica."""
    return f"{life.of}#{life.incarnation}"


def owner_of(life: LifeId, name: str) -> str:
    """Say in whose name a life's port is taken."""
    return gang_of(life) if name == RENDEZVOUS else f"{life.worker}:{name}"


def gang(unit: Unit, life: LifeId, given: Mapping[str, int]) -> Gang | None:
    """Say where a life's gang meets; None if it has no gang."""
    if RENDEZVOUS not in given:
        return None
    size, port = len(unit.spec.members), given[RENDEZVOUS]
    return Gang(member=life.member, size=size, host=LOOPBACK, port=port)


Tell = Callable[[LifeId, str, dict[str, str]], None]
"""Told of a life whose port isn't its last one's: the reason, and details."""


class PortDesk:
    """The ports of all workers."""

    def __init__(self, table: PortTable, tell: Tell) -> None:
        self._table = table
        self._tell = tell

    def assign(self, unit: Unit, life: LifeId, planned: PlannedWorker) -> dict[str, int]:
        """Give a worker that is to be born its ports, by name.

        NoPortError: there are none.
        """
        chosen = [name for name, port in planned.ports.items() if not port]
        given = {name: self._port(life, name, planned.port_counts.get(name, 1)) for name in chosen}
        self._show(unit, life, given)
        return given

    def _port(self, life: LifeId, name: str, count: int) -> int:
        owner = owner_of(life, name)
        if name == RENDEZVOUS:
            return self._table.take(owner)
        before = self._table.of(owner)
        port, why = self._table.renew(owner, count)
        if why:
            reason = f"{why}, which was this worker's {name}; it is {port} from now on"
            self._tell(life, reason, {name: str(port), "was": str(before)})
        return port

    def show(self, unit: Unit, life: LifeId) -> None:
        """Note an adopted life's ports for the views."""
        planned = unit.spec.members[life.member]
        found = {name: self._table.of(owner_of(life, name)) for name in planned.ports}
        self._show(unit, life, {name: port for name, port in found.items() if port is not None})

    @staticmethod
    def _show(unit: Unit, life: LifeId, given: dict[str, int]) -> None:
        heard = unit.of(life)
        if heard is not None:
            heard.ports = given

    def end(self, life: LifeId, left: Collection[LifeId]) -> None:
        """This life is over; `left`: those that aren't. The last of a gang lets its port rest."""
        mine = (life.incarnation, life.of)
        if all((other.incarnation, other.of) != mine for other in left):
            self._table.release(gang_of(life))

    def forget(self, replica: ReplicaId) -> None:
        """This replica is gone for good: its workers' own ports rest."""
        for owner in self._table.owners():
            if owner.startswith(f"{replica}."):
                self._table.release(owner)

    def keep(self, left: Collection[LifeId], units: Iterable[Unit]) -> None:
        """Let the ports rest of all that went while no daemon was there."""
        owners = {gang_of(life) for life in left}
        for unit in units:
            for planned in (*unit.spec.members, *unit.coming.members):
                life = unit.life(planned.member)
                owners |= {owner_of(life, name) for name in planned.ports if name != RENDEZVOUS}
        self._table.keep(owners)
