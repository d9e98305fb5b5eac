"""Where a gang meets: one port for all members of one incarnation, another one for the next.

It is taken with the first member's birth and rests when the last member's tree is empty. What lives
knows its port by name (`gang_of`), so a daemon that takes over finds it again.
"""

from collections.abc import Collection

from orchestrator.core.plan import RENDEZVOUS, PlannedWorker
from orchestrator.daemon.unit import Unit
from orchestrator.host.port_table import PortTable
from orchestrator.wire.config import Gang
from orchestrator.wire.ids import LifeId

LOOPBACK = "127.0.0.1"


def gang_of(life: LifeId) -> str:
    """Name a life's gang: one incarnation of a replica."""
    return f"{life.of}#{life.incarnation}"


class Meetings:
    """The ports of all gangs."""

    def __init__(self, ports: PortTable) -> None:
        self._ports = ports

    def arrange(self, unit: Unit, life: LifeId, planned: PlannedWorker) -> Gang | None:
        """Say to a worker that is to be born where its gang meets; None if it has no gang.

        NoPortError: no port is free.
        """
        if RENDEZVOUS not in planned.ports:
            return None
        port = self._ports.take(gang_of(life))
        self.show(unit, life)
        return Gang(member=life.member, size=len(unit.spec.members), host=LOOPBACK, port=port)

    def show(self, unit: Unit, life: LifeId) -> None:
        """Note a present life's port for the views."""
        heard, port = unit.of(life), self._ports.of(gang_of(life))
        if heard is not None and port is not None:
            heard.ports = {RENDEZVOUS: port}

    def end(self, life: LifeId, left: Collection[LifeId]) -> None:
        """This life is over; `left`: those that aren't. The last of a gang lets its port rest."""
        gang = gang_of(life)
        if all(gang_of(other) != gang for other in left):
            self._ports.release(gang)

    def keep(self, left: Collection[LifeId]) -> None:
        """Let the ports of gangs rest that ended while no daemon was there."""
        self._ports.keep({gang_of(life) for life in left})
