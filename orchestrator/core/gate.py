"""The GPU gate: nobody starts into memory that isn't free, and one start at a time per device.

A killed CUDA process is gone before the driver has given its memory back, and a new one that comes
too early dies of "out of memory" and is blamed for it. So a waiting replica is cleared only when
all its devices looked free in several samples running.

Free means one of two things. An *exclusive* device holds no more than its baseline (the least that
was seen in use while no replica of ours was on it) and a little slack. The baseline has a cap, so
that an orphan that was there first can't pass for furniture. A *shared* device has the replica's
share free. Whoever was cleared and hasn't started yet has its devices for itself, and where one of
ours is being born, the others wait for their turn: two that measure free memory at the same time
both measure wrong.

A device that is lost, as the driver or a dead worker says, is *quarantined*: nobody starts there
until somebody asks for it by hand and it answers.

`step` is called for each sample and remembers in `Gate` whatever it will need. Only `Gate.known`
has to outlive the daemon: a new one asks everything else again.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from orchestrator.core import gate_words as words
from orchestrator.core.devices import Device, Holder, Memory, Reading, Trouble
from orchestrator.core.events import Cleared, GaveUp, Held
from orchestrator.core.fleet import is_being_born
from orchestrator.core.moves import UNKNOWN
from orchestrator.core.policy import Gpu, GpuMode
from orchestrator.core.reasons import Reason
from orchestrator.core.state import Await, Hold, Phase, State
from orchestrator.wire.ids import ReplicaId

MIB = 2**20
BASELINE_BYTES_MAX = 1024 * MIB
"""More than this is never furniture, whatever was seen."""

SHARED_MARGIN_BYTES = 256 * MIB
"""What a shared device must have free beside the share: the newcomer's CUDA context."""

REFRESH_S = 5.0
"""How often a wait is told anew whose numbers merely drift."""

LEAD_S = 1.0
"""How long before a backoff ends its devices are looked at: both are waited for at once."""

Told = Cleared | Held | GaveUp


class Waiter(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that nothing but its GPUs keeps from its start (see `looks_at`).

    `hold`: what it was told last, None when it was cleared: then it has its devices for itself
    until it starts. `by_hand`: it waits because somebody asked for it, not because it failed.
    """

    replica: ReplicaId
    incarnation: int
    devices: tuple[Device, ...]
    policy: Gpu = Gpu()
    hold: Reason | None = UNKNOWN[Hold.GPU]
    by_hand: bool = False


class Occupant(msgspec.Struct, frozen=True, kw_only=True):
    """A replica of ours that may have processes on these devices: its phase is a live one.

    `grows`: it may take memory there that no sample shows yet (see `may_grow`).
    """

    replica: ReplicaId
    uuids: frozenset[str]
    phase: Phase
    mode: GpuMode = GpuMode.EXCLUSIVE
    grows: bool = False


class Known(msgspec.Struct, frozen=True):
    """What is remembered of a device in this boot. `quarantine` says why nobody may start there."""

    baseline_bytes: int | None = None
    quarantine: str = ""


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """How far one waiter is.

    `since`: when its turn came. `streak`: samples in a row in which all its devices were free;
    `lost`: in which one was lost. `told_at`: when it was last told a reason. `noted`: its event is
    out.
    """

    incarnation: int
    since: float
    streak: int = 0
    lost: int = 0
    told_at: float = float("-inf")
    noted: bool = False


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is remembered from sample to sample; waits in the order of coming."""

    known: dict[str, Known] = {}
    waits: dict[ReplicaId, Wait] = {}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is seen at one moment.

    `readings` of at least the devices that are `wanted`; a waiter without one (it came after the
    sample was taken) waits for the next. `holders`: devices that nobody has looked into are absent.
    """

    waiters: Sequence[Waiter]
    occupants: Sequence[Occupant]
    readings: Mapping[str, Reading]
    holders: Mapping[str, Sequence[Holder]] = {}


class Outcome(msgspec.Struct, kw_only=True):
    """What follows. Every sentence in it is final: tell it to the replica machine at once.

    `cleared`: who has its devices for itself. `noted`: waits that are worth an event. `unclear`:
    devices of which it should be asked who holds them.
    """

    gate: Gate
    cleared: set[ReplicaId]
    told: list[tuple[ReplicaId, Told]] = []
    noted: list[tuple[ReplicaId, Reason]] = []
    unclear: set[str] = set()


def looks_at(state: State, now: float) -> bool:
    """Whether this replica's devices should be looked at now: nothing else holds it back."""
    others = state.holds.keys() - {Hold.GPU, Hold.TURN}
    return state.phase is Phase.WAITING and not others and now >= state.not_before - LEAD_S


def may_grow(state: State) -> bool:
    """Whether it may still take memory as one does that starts: it does, or is only to stop.

    A birth that is ordered comes, whatever was asked since; and a SIGTERM is swallowed by an engine
    that loads, so only a kill ends a start for good.
    """
    if state.phase is Phase.STARTING or is_being_born(state):
        return True
    stops = state.deadline is not None and state.deadline.what is Await.STOP
    return state.phase is Phase.STOPPING and stops and state.ready_at is None


def limit_bytes(baseline_bytes: int, total_bytes: int, slack_bytes: int) -> int:
    """How much of an exclusive device may be in use while it counts as free."""
    return baseline_bytes + max(slack_bytes, total_bytes // 100)


def need_bytes(share: float, total_bytes: int) -> int:
    """How much of a shared device must be free."""
    return round(share * total_bytes) + SHARED_MARGIN_BYTES


def quarantine(gate: Gate, uuid: str, why: str) -> Gate:
    """Let nobody start on this device until somebody asks by hand and it answers."""
    known = replace(gate.known.get(uuid, Known()), quarantine=why)
    return replace(gate, known={**gate.known, uuid: known})


def wanted(waiters: Sequence[Waiter], occupants: Sequence[Occupant]) -> set[str]:
    """Devices to be read: those of every waiter that doesn't wait for another of ours."""
    cleared = _cleared(waiters)
    return {
        device.uuid
        for waiter in waiters
        if _rival(waiter, cleared, waiters, occupants) is None
        for device in waiter.devices
    }


def step(gate: Gate, sample: Sample, now: float) -> Outcome:
    """Judge one sample."""
    by_id = {waiter.replica: waiter for waiter in sample.waiters}
    gate = _learn(_admit(gate, by_id, now), sample)
    outcome = Outcome(gate=gate, cleared=_cleared(sample.waiters))
    for replica in gate.waits:
        _judge(outcome, by_id[replica], sample, now)
    return outcome


def _cleared(waiters: Sequence[Waiter]) -> set[ReplicaId]:
    return {waiter.replica for waiter in waiters if waiter.hold is None}


# ---- what is remembered ------------------------------------------------------------------------


def _admit(gate: Gate, waiters: Mapping[ReplicaId, Waiter], now: float) -> Gate:
    """Keep the waits that go on, in their order; begin the new ones; forget the rest."""
    waits = {
        replica: wait
        for replica, wait in gate.waits.items()
        if replica in waiters and waiters[replica].incarnation == wait.incarnation
    }
    known = dict(gate.known)
    for waiter in waiters.values():
        if waiter.replica in waits:
            continue
        waits[waiter.replica] = Wait(incarnation=waiter.incarnation, since=now)
        for device in waiter.devices if waiter.by_hand else ():
            if device.uuid in known:
                known[device.uuid] = replace(known[device.uuid], quarantine="")
    return replace(gate, waits=waits, known=known)


def _learn(gate: Gate, sample: Sample) -> Gate:
    """Lower the baselines of devices on which none of ours is."""
    occupied = {uuid for occupant in sample.occupants for uuid in occupant.uuids}
    known = dict(gate.known)
    for uuid, reading in sample.readings.items():
        if isinstance(reading, Memory) and uuid not in occupied:
            before = known.get(uuid, Known())
            least = before.baseline_bytes
            least = BASELINE_BYTES_MAX if least is None else least
            known[uuid] = replace(before, baseline_bytes=min(least, reading.used_bytes))
    return replace(gate, known=known)


def _limit(gate: Gate, waiter: Waiter, device: Device, reading: Memory) -> int:
    """What decides about a device: the least that must be free, or the most that may be used."""
    if waiter.policy.mode is GpuMode.SHARED:
        return need_bytes(waiter.policy.share, reading.total_bytes)
    # Without a baseline yet one of ours is on it, and then it isn't measured at all.
    baseline = gate.known.get(device.uuid, Known()).baseline_bytes or 0
    return limit_bytes(baseline, reading.total_bytes, waiter.policy.slack_bytes)


# ---- one waiter --------------------------------------------------------------------------------


def _judge(outcome: Outcome, waiter: Waiter, sample: Sample, now: float) -> None:
    """Say what this sample means to one waiter."""
    gate = outcome.gate
    wait = gate.waits[waiter.replica]
    for device in waiter.devices:
        why = gate.known.get(device.uuid, Known()).quarantine
        if why:
            _give_up(outcome, waiter, words.quarantined(device, why))
            return
    rival = _rival(waiter, outcome.cleared, sample.waiters, sample.occupants)
    if rival is not None:
        _hold(outcome, waiter, replace(wait, since=now, streak=0, lost=0), rival, now)
    elif all(device.uuid in sample.readings for device in waiter.devices):
        _measure(outcome, waiter, wait, sample, now)


def _rival(
    waiter: Waiter,
    cleared: set[ReplicaId],
    waiters: Sequence[Waiter],
    occupants: Sequence[Occupant],
) -> Reason | None:
    """Why it isn't this one's turn: another of ours is starting there, or about to, or has it."""
    mine = {device.uuid: device for device in waiter.devices}
    for other in occupants:
        shared = mine.keys() & other.uuids
        if not shared or other.replica == waiter.replica:
            continue
        device = mine[min(shared)]
        if other.grows:
            return words.turn(device, other.replica, other.phase)
        if GpuMode.EXCLUSIVE in {waiter.policy.mode, other.mode}:
            return words.taken(device, other.replica, other.phase)
    for rival in waiters:
        if rival.replica in cleared and rival.replica != waiter.replica:
            shared = mine.keys() & {device.uuid for device in rival.devices}
            if shared:
                return words.turn(mine[min(shared)], rival.replica, Phase.STARTING)
    return None


def _measure(outcome: Outcome, waiter: Waiter, wait: Wait, sample: Sample, now: float) -> None:
    """It is its turn: look at the memory of all its devices."""
    policy, readings = waiter.policy, sample.readings
    closed = [one for one in waiter.devices if not _is_free(outcome.gate, waiter, one, readings)]
    if not closed:
        wait = replace(wait, streak=wait.streak + 1, lost=0)
        if wait.streak >= policy.samples and waiter.hold is not None:
            outcome.told.append((waiter.replica, Cleared(Hold.GPU, waiter.incarnation)))
            outcome.cleared.add(waiter.replica)
        _keep(outcome, waiter, wait)
        return
    outcome.unclear |= {one.uuid for one in closed if isinstance(readings[one.uuid], Memory)}
    gone = [one for one in closed if getattr(readings[one.uuid], "lost", False)]
    wait = replace(wait, streak=0, lost=wait.lost + 1 if gone else 0)
    if wait.lost >= policy.samples:
        trouble = readings[gone[0].uuid]
        assert isinstance(trouble, Trouble), "memory is no trouble"
        outcome.gate = quarantine(outcome.gate, gone[0].uuid, trouble.text)
        _give_up(outcome, waiter, words.quarantined(gone[0], trouble.text))
        return
    reason = _why(outcome.gate, waiter, closed[0], sample)
    if policy.timeout_s is not None and now - wait.since >= policy.timeout_s:
        _give_up(outcome, waiter, words.timed_out(reason, policy.timeout_s))
        return
    if now - wait.since >= policy.event_after_s and not wait.noted:
        outcome.noted.append((waiter.replica, reason))
        wait = replace(wait, noted=True)
    _hold(outcome, waiter, wait, reason, now)


def _is_free(gate: Gate, waiter: Waiter, device: Device, readings: Mapping[str, Reading]) -> bool:
    reading = readings[device.uuid]
    if isinstance(reading, Trouble):
        return False
    limit = _limit(gate, waiter, device, reading)
    if waiter.policy.mode is GpuMode.SHARED:
        return reading.free_bytes >= limit
    return reading.used_bytes <= limit


def _why(gate: Gate, waiter: Waiter, device: Device, sample: Sample) -> Reason:
    """Explain why a device isn't free."""
    reading = sample.readings[device.uuid]
    limit = _limit(gate, waiter, device, reading) if isinstance(reading, Memory) else 0
    return words.closed(device, reading, waiter.policy, limit, sample.holders.get(device.uuid))


def _hold(outcome: Outcome, waiter: Waiter, wait: Wait, reason: Reason, now: float) -> None:
    """Hold it back, and say so if that is news."""
    before = waiter.hold
    drifts = (
        before is not None
        and (before.cause, before.evidence) == (reason.cause, reason.evidence)
        and now - wait.told_at < REFRESH_S
    )
    if before != reason and not drifts:
        outcome.told.append((waiter.replica, Held(Hold.GPU, waiter.incarnation, reason)))
        wait = replace(wait, told_at=now)
    outcome.cleared.discard(waiter.replica)
    _keep(outcome, waiter, wait)


def _keep(outcome: Outcome, waiter: Waiter, wait: Wait) -> None:
    waits = {**outcome.gate.waits, waiter.replica: wait}
    outcome.gate = replace(outcome.gate, waits=waits)


def _give_up(outcome: Outcome, waiter: Waiter, reason: Reason) -> None:
    outcome.told.append((waiter.replica, GaveUp(waiter.incarnation, reason)))
    waits = {replica: w for replica, w in outcome.gate.waits.items() if replica != waiter.replica}
    outcome.gate = replace(outcome.gate, waits=waits)
