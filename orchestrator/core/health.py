"""One word for a whole topology, from the phases of its replicas.

Only replicas that are wanted up count: what the operator stopped by hand doesn't make the rest
unhealthy.
"""

import enum
from collections.abc import Iterable

from orchestrator.core.state import Phase, State, Want, routable


class Health(enum.Enum):
    """From best to worst, with `stopped` apart."""

    READY = "ready"
    STARTING = "starting"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"


def is_up(state: State) -> bool:
    """Say whether this replica does what it should: it is routable, or its work is complete."""
    return state.phase is Phase.COMPLETED or routable(state)


def health(states: Iterable[State]) -> Health:
    """Judge the topology.

    failed: a replica has failed and nothing of its role is up; degraded: something failed, went
    unready, won't go, or is being restarted after a failure; starting: on its way up.
    """
    everything = list(states)
    wanted = [state for state in everything if state.want is Want.UP]
    if not wanted:
        stuck = any(state.unkillable for state in everything)
        return Health.DEGRADED if stuck else Health.STOPPED
    if all(is_up(state) for state in wanted):
        return Health.READY
    roles_up = {role_of(state) for state in wanted if is_up(state)}
    failed = [state for state in wanted if state.phase is Phase.FAILED]
    if any(role_of(state) not in roles_up for state in failed):
        return Health.FAILED
    if failed or any(is_broken(state) for state in wanted if not is_up(state)):
        return Health.DEGRADED
    return Health.STARTING


def is_broken(state: State) -> bool:
    """Say whether it is down because something went wrong, not because it is on its way up."""
    return state.phase is Phase.READY or state.fault is not None or state.counters.row > 0


def role_of(state: State) -> str:
    """Name the role, `topology/role`, from the replica's name."""
    return state.name.rpartition("-")[0]
