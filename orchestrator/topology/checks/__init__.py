"""What no single key can say: whether the parts of a topology fit together.

Each check is a function from a whole topology to findings. They run on what could be read of the
file, also when other keys were wrong, and none of them needs the machine: GPUs that don't exist
and ports that are taken are found by placement and preflight.
"""

from collections.abc import Callable, Iterator

from orchestrator.topology.checks import gpus, groups, names, pairs, policies, processes, roles
from orchestrator.topology.complaints import Finding
from orchestrator.topology.schema import Topology, inherit

Check = Callable[[Topology], Iterator[Finding]]

AS_WRITTEN: tuple[Check, ...] = (
    names.are_valid,
    names.are_unique,
    names.something_runs,
    names.environment,
    names.interpreters,
    processes.probes,
    processes.oneshots,
    processes.drains,
    processes.dependencies,
    processes.cycles,
    processes.ports,
    groups.members,
    groups.dependants,
    roles.flags,
    roles.simulator,
    gpus.sizes_agree,
    gpus.listed_once,
    gpus.utilizations,
)
WITH_DEFAULTS: tuple[Check, ...] = (
    processes.conditions,
    roles.models,
    roles.served_names,
    pairs.both_there,
    pairs.one_model,
    pairs.same_blocks,
    pairs.buffers,
    roles.kv_routing,
)


def cross_check(written: Topology) -> list[Finding]:
    """Everything the checks find. `written` has no defaults filled in yet."""
    whole = inherit(written)
    found = [finding for check in AS_WRITTEN for finding in check(written)]
    found += [finding for check in WITH_DEFAULTS for finding in check(whole)]
    found += policies.consistent(written, whole)
    return found
