"""What a topology may say and has a price: one line for each, that `up` prints and goes on.

A mistake is refused (`checks`); what the author may have weighed and chosen isn't. But a choice
whose price is a wrong answer must have been one.
"""

from collections.abc import Iterator

from orchestrator.topology.complaints import Complaint, Finding
from orchestrator.topology.policies import LivenessPolicy
from orchestrator.topology.schema import Topology
from orchestrator.topology.units import format_duration

DECODE_SHARE = 0.5
"""The part of a lease in which decode must be found frozen; the frontend's tickets end before."""
_LOOKS_S = 2.0
"""The daemon's own: its looks at the beats, and the end of the process."""


def advice(topology: Topology) -> list[Complaint]:
    """Everything there is to say, in the order of the file."""
    said = [topology.source.complaint(finding) for finding in _lease(topology)]
    return sorted(said, key=lambda each: each.line)


def frozen_found_s(alive: LivenessPolicy) -> float:
    """How long a worker may be frozen, in whole or its engine, until it has been ended."""
    engine_s = alive.hang_s + alive.ask_s + alive.misses * alive.beat_s
    return max(engine_s, alive.expire_s) + _LOOKS_S


def _lease(topology: Topology) -> Iterator[Finding]:
    """Whoever freezes while it has a ticket must be gone before the blocks are another's.

    Decode has it until its engine has read the blocks; the main process of prefill and the frontend
    have prefill's answer before it becomes one.
    """
    transfer = topology.kv_transfer
    if transfer is None:
        return
    holders = [(topology.frontend.liveness.expire_s + _LOOKS_S, "frontend")]
    for name, role in topology.roles.items():
        if role.kind == "decode":
            holders.append((frozen_found_s(role.liveness), f"worker of role {name}"))
        elif role.kind == "prefill":
            holders.append((role.liveness.expire_s + _LOOKS_S, f"worker of role {name}"))
    found_s, who = max(holders)
    least_s = found_s / DECODE_SHARE
    if transfer.lease_s >= least_s:
        return
    wrong = (
        f"{format_duration(transfer.lease_s)} is less than twice the {format_duration(found_s)}"
        f" in which a frozen {who} is found, so decode may read blocks that are another prompt's"
        " by then, and answer wrongly"
    )
    right = f'write lease = "{format_duration(least_s)}" or more'
    yield Finding(("kv-transfer", "lease"), wrong, right)
