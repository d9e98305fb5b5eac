"""What the GPU gate says: one sentence for each way of waiting.

It names the device, the bytes and who holds them, because that is what an operator acts on. The
evidence holds what makes two waits different in kind; numbers that merely drift are in the sentence
alone, so that a draining GPU isn't news four times a second.
"""

from collections.abc import Sequence

from orchestrator.core.devices import Device, Holder, Memory, Reading, Trouble
from orchestrator.core.diagnosis import seconds
from orchestrator.core.policy import Gpu, GpuMode
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Phase
from orchestrator.wire.ids import ReplicaId

LOST_ADVICE = (
    "see `nvidia-smi` and `dmesg | grep Xid`; reset the GPU or reboot, then `dynorch start` "
    "looks at it again"
)
HOLDERS_MAX = 3
"""Holders that a sentence names; the rest are counted."""


def gib(size_bytes: int) -> str:
    """Write a size as nvidia-smi's readers think of it."""
    return f"{size_bytes / 2**30:.1f} GiB"


def turn(device: Device, other: ReplicaId, phase: Phase) -> Reason:
    """Another one of ours is starting there, or has been told to stop while it did."""
    does = "is starting there" if phase is Phase.STARTING else "was starting there and isn't gone"
    sentence = f"waits for its turn on {device}: {other} {does}"
    return Reason(Cause.WAITING_TURN, sentence, evidence=str(other))


def taken(device: Device, other: ReplicaId, phase: Phase) -> Reason:
    """Another one of ours has it for itself, or we want it for ourselves."""
    who = f"{other}'s, which is {phase.value}"
    advice = 'stop that one, name other GPUs, or write gpu = { mode = "shared" } for both'
    return Reason(Cause.WAITING_GPU, f"{device} is {who}", advice, evidence=who)


def closed(
    device: Device, reading: Reading, policy: Gpu, limit: int, holders: Sequence[Holder] | None
) -> Reason:
    """Too much of it is in use, or it doesn't answer. `holders`: None when nobody looked yet."""
    if isinstance(reading, Trouble):
        sentence = f"{device} doesn't answer: {reading.text}"
        advice = "see `nvidia-smi`; it starts as soon as the device answers"
        return Reason(Cause.WAITING_GPU, sentence, advice, evidence=reading.text)
    who = whom(holders)
    sentence = amounts(device, reading, policy, limit) + (f": {who}" if who else "")
    return Reason(Cause.WAITING_GPU, sentence, advice_for(policy, holders), evidence=who)


def amounts(device: Device, memory: Memory, policy: Gpu, limit: int) -> str:
    """Say how much there is, and how much is wanted."""
    if policy.mode is GpuMode.SHARED:
        return f"{device} has {gib(memory.free_bytes)} free, {gib(limit)} are needed"
    used = gib(memory.used_bytes)
    return f"{device} still holds {used}, up to {gib(limit)} would count as free"


def whom(holders: Sequence[Holder] | None) -> str:
    """Name the holders, ours first."""
    if holders is None:
        return ""
    if not holders:
        return "held by nobody that can be seen from here (the driver, or another container)"
    ranked = sorted(holders, key=lambda one: (not one.worker, -(one.used_bytes or 0), one.pid))
    named = ", ".join(name(one) for one in ranked[:HOLDERS_MAX])
    more = f" and {len(ranked) - HOLDERS_MAX} more" if len(ranked) > HOLDERS_MAX else ""
    return f"held by {named}{more}"


def name(holder: Holder) -> str:
    """One holder in words."""
    words = [word for word in (holder.command, holder.user and f"user {holder.user}") if word]
    who = f"pid {holder.pid}" + (f" ({', '.join(words)})" if words else "")
    if holder.orphan:
        return f"{who}, left over from {holder.worker}, which is being ended"
    return f"{who}, of {holder.worker}" if holder.worker else f"{who}, not ours"


def advice_for(policy: Gpu, holders: Sequence[Holder] | None) -> str:
    """Say what to do, where anything can be done."""
    if holders is None or any(holder.worker for holder in holders):
        return ""
    if holders:
        return "waits until it is gone; end it if it shouldn't be there"
    if policy.mode is GpuMode.SHARED:
        return "if nothing there will end, lower gpu-memory-utilization"
    return "see `nvidia-smi`; a driver that keeps memory for good needs a reset of the GPU"


def quarantined(device: Device, why: str) -> Reason:
    """It is lost, as far as anybody knows."""
    return Reason(Cause.GPU_LOST, f"{device} is quarantined: {why}", LOST_ADVICE, evidence=why)


def timed_out(reason: Reason, after_s: float) -> Reason:
    """It has waited for as long as the file allows."""
    sentence = f"gave up after {seconds(after_s)}: {reason.sentence}"
    return Reason(Cause.GPU_BUSY, sentence, reason.advice, reason.evidence)
