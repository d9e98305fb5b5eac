"""GPUs: parallel sizes against what a worker gets, and no GPU in two hands."""

from collections.abc import Iterator

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.policies import utilization
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import Topology


def sizes_agree(topology: Topology) -> Iterator[Finding]:
    """Tensor-parallel x pipeline-parallel x its ranks is the number of GPUs of one worker."""
    for name, role in topology.roles.items():
        path: Path = ("roles", name, "gpus")
        keys = ["tensor-parallel", "pipeline-parallel"]
        if role.ranks > 1:
            keys += ["data-parallel", "data-parallel-balancing"]
        if isinstance(role.gpus, tuple):
            keys += ["data-parallel", "replicas"]
        uses = tuple(("roles", name, key) for key in keys)
        for wrong, right in _disagreement(role):
            yield Finding(path, wrong, right, uses)


def _disagreement(role: EngineRole) -> Iterator[tuple[str, str]]:
    if role.gpus is None or role.gpus == 0:
        return
    parts = role.pipeline_parallel * role.ranks
    least = (role.tensor_parallel or 1) * parts
    each = role.gpus_per_worker
    sizes = f"tensor-parallel {role.tensor_parallel or 1} x pipeline-parallel "
    sizes += str(role.pipeline_parallel)
    if role.ranks > 1:
        sizes += f" x {role.ranks} ranks in one worker"
    if isinstance(role.gpus, tuple) and len(role.gpus) % role.workers:
        wrong = f"{len(role.gpus)} GPUs can't be dealt evenly to {role.workers} workers"
        yield wrong, f"list {role.workers * least}"
    elif isinstance(each, float):
        if least > 1:
            yield f"{sizes} needs {least} whole GPUs per worker", f"write gpus = {least}"
    elif role.tensor_parallel is None and each % parts:
        into = f"{role.pipeline_parallel} stages" if role.ranks == 1 else f"{parts} parts: {sizes}"
        wrong = f"{each} GPUs per worker can't be cut into {into}"
        yield wrong, f"write gpus = {parts}, or a multiple of it"
    elif role.tensor_parallel is not None and each != least:
        right = f"list {role.workers * least}" if isinstance(role.gpus, tuple) else f"write {least}"
        yield f"{sizes} makes {least} GPUs per worker, not {each}", f"{right}, or leave gpus out"


def listed_once(topology: Topology) -> Iterator[Finding]:
    """Check that a listed GPU belongs to one worker alone."""
    owners: dict[int | str, str] = {}
    for path, gpus in _lists(topology):
        who = ".".join(str(step) for step in path[:2])
        for index, gpu in enumerate(gpus):
            if gpu in owners:
                both = who if owners[gpu] == who else f"{owners[gpu]} and {who}"
                right = "list each GPU once; to share one, give each worker a fraction"
                yield Finding((*path, index), f"GPU {gpu} is listed twice, by {both}", right)
            owners.setdefault(gpu, who)


def utilizations(topology: Topology) -> Iterator[Finding]:
    """Check that a worker plans with memory that there is, and on a shared GPU with its share."""
    for name, role in topology.roles.items():
        wanted = role.vllm.get("gpu-memory-utilization")
        if not isinstance(wanted, int | float) or isinstance(wanted, bool):
            continue
        path = ("roles", name, "vllm", "gpu-memory-utilization")
        if not 0 < wanted <= 1:
            right = "write a part of it, like 0.9, or leave it out"
            yield Finding(path, f"{wanted} is no part of a GPU's memory", right)
        elif isinstance(role.gpus, float) and wanted > utilization(role.gpus):
            wrong = (
                f"{wanted} of the GPU's memory is too much for a worker with a share of {role.gpus}"
            )
            right = f"write at most {utilization(role.gpus)}: the rest is what CUDA itself needs"
            yield Finding(path, wrong, right, (("roles", name, "gpus"),))


def _lists(topology: Topology) -> Iterator[tuple[Path, tuple[int | str, ...]]]:
    for name, role in topology.roles.items():
        if isinstance(role.gpus, tuple):
            yield ("roles", name, "gpus"), role.gpus
    for name, process in topology.processes.items():
        if isinstance(process.gpus, tuple):
            yield ("processes", name, "gpus"), process.gpus
