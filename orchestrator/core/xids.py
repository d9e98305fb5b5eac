"""What the driver's Xid errors mean: which take a GPU out of service, which end who uses it.

An Xid is the driver's number for an error that a GPU had. Most are a program's own fault and end
that program; a few say that the GPU can't be trusted until it is reset, and of those some that it
answers nobody any more, so that whoever computes there would hang.
"""

from orchestrator.core.devices import Device
from orchestrator.core.gate_words import LOST_ADVICE
from orchestrator.core.reasons import Cause, Reason

QUARANTINES = {
    48: "uncorrectable ECC error",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "its system processor (GSP) doesn't answer",
    120: "error of its system processor (GSP)",
}
"""Nobody starts there until somebody has looked."""

GONE = frozenset({79, 119, 120})
"""Nothing that runs there comes to an end by itself."""

KNOWN = QUARANTINES | {
    13: "graphics engine exception, mostly a bug in a kernel",
    31: "memory page fault, mostly a bug in a kernel",
    43: "a channel was reset after a program's error",
    45: "a program's work was ended after an earlier error",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    94: "contained ECC error",
}


def words(number: int) -> str:
    """The number with what is known of it."""
    known = KNOWN.get(number)
    return f"Xid {number} ({known})" if known else f"Xid {number}"


def lost(device: Device, number: int) -> Reason:
    """Why a life on this device is ended."""
    said = words(number)
    return Reason(Cause.GPU_LOST, f"{device} reports {said}", LOST_ADVICE, evidence=said)
