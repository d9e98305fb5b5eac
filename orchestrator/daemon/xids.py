"""What follows from the errors that GPUs report: see `core.xids` for which mean what.

Heard are the GPUs of all units, while at least one of them has processes there. A critical error
quarantines its GPU; whoever computes on one that is gone is ended at once, because nothing else
would end it before its silence did.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from orchestrator.core import events, xids
from orchestrator.core.devices import Device, Reading, Trouble
from orchestrator.core.state import LIVE
from orchestrator.daemon.unit import Unit, devices_of, uuids_of
from orchestrator.host.gpu_provider import Provider
from orchestrator.host.xids import XidListener
from orchestrator.wire.ids import ReplicaId


class Gate(Protocol):
    """What the GPU gate does about it."""

    def quarantine(self, uuid: str, why: str) -> None:
        """Let nobody start there."""

    async def read(self, uuids: frozenset[str]) -> Mapping[str, Reading]:
        """Ask the driver."""


class Told(Protocol):
    """Whom the events go to."""

    def event(self, subject: object, what: str, *, reason: str = "") -> None:
        """Publish one."""


class Xids:
    """Listens, and acts on what is heard."""

    def __init__(
        self,
        provider: Provider,
        gate: Gate,
        *,
        units: Mapping[ReplicaId, Unit],
        tell: Callable[[ReplicaId, events.Event], None],
        publisher: Told,
    ) -> None:
        self._provider = provider
        self._gate = gate
        self._units = units
        self._tell = tell
        self._publisher = publisher
        self._asking: set[asyncio.Task[None]] = set()
        self._listener = XidListener(provider.listen, self.heard, self._deaf)

    def changed(self) -> None:
        """Listen if anybody computes, and not else."""
        units = [unit for unit in self._units.values() if uuids_of(unit)]
        computes = self._provider.judges and any(unit.state.phase in LIVE for unit in units)
        wanted = frozenset[str]().union(*map(uuids_of, units)) if computes else frozenset[str]()
        self._listener.want(wanted)

    def close(self) -> None:
        """Hear nothing more."""
        self._listener.close()
        for task in self._asking:
            task.cancel()

    def heard(self, uuid: str, number: int) -> None:
        """A device had an error."""
        device = next(
            (one for unit in self._units.values() for one in devices_of(unit) if one.uuid == uuid),
            Device(uuid),
        )
        if number not in xids.QUARANTINES:
            self._publisher.event("daemon", "gpu-xid", reason=f"{device}: {xids.words(number)}")
            return
        self._gate.quarantine(uuid, xids.words(number))
        if number in xids.GONE:
            self._end(device, number)
            return
        task = asyncio.get_running_loop().create_task(self._end_if_lost(device, number))
        self._asking.add(task)
        task.add_done_callback(self._asked)

    async def _end_if_lost(self, device: Device, number: int) -> None:
        answer = (await self._gate.read(frozenset({device.uuid}))).get(device.uuid)
        if isinstance(answer, Trouble) and answer.lost:
            self._end(device, number)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.result()  # raises here what was raised there, so that the daemon hears of it

    def _end(self, device: Device, number: int) -> None:
        """End the lives that compute there; their failure is the device's."""
        for unit in list(self._units.values()):
            if device.uuid in uuids_of(unit) and unit.state.phase in LIVE:
                lost = events.PeerLost(unit.state.incarnation, xids.lost(device, number))
                self._tell(unit.id, lost)

    def _deaf(self, why: str) -> None:
        self._publisher.event("daemon", "gpu-errors-unheard", reason=why)
