"""The gate's hands: who waits is read from the units, devices are asked, the verdict is passed on.

What is decided is in `core.gate`; here is only when to look. Somebody who waits for nothing but its
GPUs has them looked at each interval; where all wait for their turn, or nobody waits, there is no
timer and the session with the driver is closed. Every change of a unit that has GPUs may begin or
end a wait, so it is looked at again.

The driver is asked in a lane of its own and may hang: then that is the reason of the wait, and
nothing else is touched. What must survive the daemon (baselines, quarantines) is written to the run
directory, for this boot.

Who holds a device is asked only while it isn't free, and seldom: that costs a walk through /proc.
What carries a tag of ours and belongs to no present life is ended. Nobody else is.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from orchestrator.core import events, gate
from orchestrator.core.devices import Holder, Memory, Reading, Trouble
from orchestrator.core.reasons import Cause
from orchestrator.core.state import LIVE, RESTING, Hold, Phase, State
from orchestrator.daemon.gate_book import GateBook
from orchestrator.daemon.launcher import Life
from orchestrator.daemon.unit import Unit, devices_of, uuids_of
from orchestrator.daemon.xids import Xids
from orchestrator.host import gpus, procfs
from orchestrator.host.gpu_holders import Found, holders
from orchestrator.host.gpu_provider import Provider
from orchestrator.host.lane import Lane, LateError
from orchestrator.host.rundir import RunDir
from orchestrator.host.tagged import TagKill, is_from
from orchestrator.wire.ids import LifeId, ReplicaId

DEADLINE_S = 15.0
"""The first question opens the driver, which takes seconds where no persistence daemon runs."""

WHO_S = 5.0
"""How often it is asked who holds a device that isn't free."""

ENDING_S = 0.5
"""How often, while an orphan of ours is being ended."""


class Told(Protocol):
    """Whom the events go to."""

    def event(self, subject: object, what: str, *, reason: str = "") -> None:
        """Publish one."""


class GpuGate:
    """Waits of all units that have GPUs."""

    def __init__(
        self,
        provider: Provider,
        lane: Lane,
        *,
        run_dir: RunDir,
        units: Mapping[ReplicaId, Unit],
        lives: Mapping[LifeId, Life],
        tell: Callable[[ReplicaId, events.Event], None],
        publisher: Told,
    ) -> None:
        self._provider = provider
        self._lane = lane
        self._root = run_dir.root
        self._units = units
        self._lives = lives
        self._tell = tell
        self._publisher = publisher
        self._book = GateBook(run_dir.gpus, procfs.boot_id(), self._not_saved)
        self._gate = gate.Gate(known=self._book.known)
        self._by_hand: set[ReplicaId] = set()
        self._holders: dict[str, list[Holder]] = {}
        self._asked_at: dict[str, float] = {}
        self._kills: dict[str, TagKill] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._changed = False
        self._open = False
        self._xids = Xids(provider, self, units=units, tell=tell, publisher=publisher)

    # ---- when to look ------------------------------------------------------------------------

    def begin(self) -> None:
        """Look for the first time: whoever was adopted may be waiting already."""
        self._xids.changed()
        self._soon()

    def changed(self, unit: Unit, before: State) -> None:
        """A unit is different now: a wait may have begun or ended, a device be free or taken."""
        if not uuids_of(unit):
            return
        self._xids.changed()
        state = unit.state
        if state.phase is before.phase and state.holds.keys() == before.holds.keys():
            return
        if state.phase is Phase.WAITING and before.phase is not Phase.WAITING:
            by_hand = before.phase in RESTING
            (self._by_hand.add if by_hand else self._by_hand.discard)(unit.id)
        if state.phase is Phase.FAILED and before.phase is not Phase.WAITING:
            self._note_loss(unit)
        self._soon()

    def _soon(self) -> None:
        self._changed = True
        if self._round is None:
            self._arm(asyncio.get_running_loop().time())

    def close(self) -> None:
        """Look no more. A question that hangs is left behind."""
        self._xids.close()
        self._disarm()
        if self._round is not None:
            self._round.cancel()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_at(at, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._changed = False
        self._round = asyncio.get_running_loop().create_task(self._look())
        self._round.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._round = None
        if not task.cancelled():
            task.result()  # raises here what was raised there, so that the daemon hears of it

    async def _look(self) -> None:
        """One sample, and what follows from it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiters, occupants = self._waiters(began), self._occupants()
        wanted = gate.wanted(waiters, occupants)
        if not self._provider.judges:
            for waiter in waiters:
                self._tell(waiter.replica, events.Cleared(Hold.GPU, waiter.incarnation))
        elif waiters:
            readings = await self.read(wanted) if wanted else {}
            # Look ahead: the first word about a device that isn't free says who holds it.
            await self._ask_who(self._step(readings).unclear)
            self._judge(readings)
        await self._rest(began)

    async def _rest(self, began: float) -> None:
        """Say when to look again, if at all."""
        now = asyncio.get_running_loop().time()
        waiters = self._waiters(now) if self._provider.judges else []
        if gate.wanted(waiters, self._occupants()):
            self._arm(began + min(waiter.policy.interval_s for waiter in waiters))
        elif self._changed:
            self._arm(now)
        elif not waiters:
            later = self._later(now)
            if later is not None:
                self._arm(later)
            elif self._open:
                self._open = False
                await self._call(self._provider.close)

    def _later(self, now: float) -> float | None:
        """When the first backoff is about to end whose replica then waits for nothing but GPUs."""
        ends = [
            unit.state.not_before - gate.LEAD_S
            for unit in self._units.values()
            if Hold.GPU in unit.spec.policy.holds
            and gate.looks_at(unit.state, max(now, unit.state.not_before))
        ]
        return min(ends, default=None)

    # ---- what the core sees ------------------------------------------------------------------

    def _waiters(self, now: float) -> list[gate.Waiter]:
        return [
            gate.Waiter(
                replica=unit.id,
                incarnation=unit.state.incarnation,
                devices=devices_of(unit),
                policy=unit.spec.policy.gpu,
                hold=unit.state.holds.get(Hold.GPU),
                by_hand=unit.id in self._by_hand,
            )
            for unit in self._units.values()
            if Hold.GPU in unit.spec.policy.holds and gate.looks_at(unit.state, now)
        ]

    def _occupants(self) -> list[gate.Occupant]:
        return [
            gate.Occupant(
                replica=unit.id,
                uuids=uuids_of(unit),
                phase=unit.state.phase,
                mode=unit.spec.policy.gpu.mode,
                grows=gate.may_grow(unit.state),
            )
            for unit in self._units.values()
            if unit.state.phase in LIVE and uuids_of(unit)
        ]

    def quarantine(self, uuid: str, why: str) -> None:
        """Let nobody start there, from now on."""
        self._keep(gate.quarantine(self._gate, uuid, why))
        self._soon()

    async def read(self, uuids: Collection[str]) -> dict[str, Reading]:
        """Ask the driver about the memory of these, or say why it doesn't answer."""
        self._open = True
        try:
            answers = await self._lane.call(lambda: self._provider.read(uuids), DEADLINE_S)
        except LateError as late:
            return dict.fromkeys(uuids, Trouble(str(late)))
        return {uuid: reading(answer) for uuid, answer in answers.items()}

    async def _call(self, function: Callable[[], None]) -> None:
        try:
            await self._lane.call(function, DEADLINE_S)
        except LateError as late:
            self._publisher.event("daemon", "gpu-driver-hangs", reason=str(late))

    def _step(self, readings: Mapping[str, Reading]) -> gate.Outcome:
        """Ask the core what this sample means."""
        now = asyncio.get_running_loop().time()
        sample = gate.Sample(
            waiters=self._waiters(now),
            occupants=self._occupants(),
            readings=readings,
            holders=self._holders,
        )
        return gate.step(self._gate, sample, now)

    def _judge(self, readings: Mapping[str, Reading]) -> None:
        """Tell what this sample means."""
        outcome = self._step(readings)
        self._keep(outcome.gate)
        for replica, reason in outcome.noted:
            self._publisher.event(replica, "gpu-held", reason=str(reason))
        self._note_before(outcome.told, readings)
        for replica, told in outcome.told:
            self._tell(replica, told)
        for uuid in set(self._holders) - outcome.unclear:
            del self._holders[uuid]
        for uuid in set(self._asked_at) - outcome.unclear:
            del self._asked_at[uuid]

    def _note_before(
        self, told: Iterable[tuple[ReplicaId, gate.Told]], readings: Mapping[str, Reading]
    ) -> None:
        """Note what was in use where somebody may start now: should it fail, that is asked."""
        used = {
            replica: {
                uuid: each.used_bytes
                for uuid in uuids_of(self._units[replica])
                if isinstance(each := readings.get(uuid), Memory)
            }
            for replica, news in told
            if isinstance(news, events.Cleared)
        }
        self._book.let_through(used, self._units)

    async def memory(self, unit: Unit) -> dict[str, dict[str, int | str | None]] | None:
        """What was in use on each device before this unit's last start, and is now, in bytes.

        None where it has no devices or nobody is to look.
        """
        devices = devices_of(unit)
        if not devices or not self._provider.judges:
            return None
        before = self._book.before(unit.id)
        found: dict[str, dict[str, int | str | None]] = {}
        for uuid, answer in (await self.read(uuids_of(unit))).items():
            found[uuid] = {"before_bytes": before.get(uuid), "end_bytes": None}
            if isinstance(answer, Memory):
                found[uuid] |= {"end_bytes": answer.used_bytes, "total_bytes": answer.total_bytes}
            else:
                found[uuid]["trouble"] = answer.text
        self._soon()  # the session with the driver is closed there
        return {device.uuid: {"index": device.index, **found[device.uuid]} for device in devices}

    def _note_loss(self, unit: Unit) -> None:
        """A worker died of its GPU: nobody is to start there before somebody has looked."""
        if unit.state.reason.cause is not Cause.GPU_LOST:
            return
        found = self._gate
        if any(found.known.get(uuid, gate.Known()).quarantine for uuid in uuids_of(unit)):
            return  # it is known which of them it was
        for uuid in uuids_of(unit):
            found = gate.quarantine(found, uuid, f"{unit.id}: {unit.state.reason.sentence}")
        self._keep(found)

    def _keep(self, new: gate.Gate) -> None:
        """Remember, and write down what the next daemon must know."""
        before, self._gate = self._gate, new
        if new.known == before.known:
            return
        for uuid, known in new.known.items():
            was = before.known.get(uuid, gate.Known()).quarantine
            if known.quarantine != was:
                what = "gpu-quarantined" if known.quarantine else "gpu-released"
                reason = f"{uuid}: {known.quarantine or was}"
                self._publisher.event("daemon", what, reason=reason)
        self._book.learn(new.known)

    def _not_saved(self, error: str) -> None:
        self._publisher.event("daemon", "not-saved", reason=error)

    # ---- who holds it ------------------------------------------------------------------------

    async def _ask_who(self, uuids: Iterable[str]) -> None:
        """Find out who holds these devices, and end those of them that are left over from us."""
        now = asyncio.get_running_loop().time()
        every_s = ENDING_S if self._kills else WHO_S
        due = [uuid for uuid in uuids if now - self._asked_at.get(uuid, -WHO_S) >= every_s]
        if not due:
            return
        self._asked_at |= dict.fromkeys(due, now)
        provider = self._provider
        try:
            found = await self._lane.call(
                lambda: {uuid: holders(provider, uuid) for uuid in due}, DEADLINE_S
            )
            for uuid, some in found.items():
                self._holders[uuid] = [self._holder(one) for one in some]
            await self._lane.call(self._end_orphans, DEADLINE_S)
        except LateError as late:
            self._publisher.event("daemon", "gpu-driver-hangs", reason=str(late))

    def _holder(self, found: Found) -> Holder:
        """Tell whose it is: of a present life, of one that is over, or a stranger's."""
        life, _, _ = found.tag.rpartition("/")
        worker, orphan = "", False
        for here in self._lives.values():
            record = here.record
            of_session = record is not None and found.sid == record.shim.pid
            if of_session or (found.tag and life == str(here.id)):
                worker = here.id.worker
        if not worker and is_from(self._root, found.tag):
            worker, orphan = life, True
            if found.tag not in self._kills:
                self._kills[found.tag] = TagKill(found.tag)
                self._publisher.event(life, "orphan-found", reason=f"pid {found.pid} holds a GPU")
        return Holder(
            pid=found.pid, command=found.command, user=found.user, used_bytes=found.used_bytes,
            worker=worker, orphan=orphan,
        )  # fmt: skip

    def _end_orphans(self) -> None:
        for tag, kill in list(self._kills.items()):
            if kill.run_pass():
                del self._kills[tag]


def reading(answer: gpus.Memory | gpus.Mute) -> Reading:
    """From the host's words to the core's."""
    if isinstance(answer, gpus.Mute):
        return Trouble(answer.text, lost=answer.lost)
    return Memory(answer.total_bytes, answer.used_bytes, answer.free_bytes)
