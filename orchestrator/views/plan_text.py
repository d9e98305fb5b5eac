"""The plan as text: what would run where, in a form that a diff can be read of.

One fact per line, nothing that depends on the time, the machine's load or a dictionary's order:
two plans differ exactly in the lines that matter, and a plan can be kept beside the topology file
under version control.
"""

import json
import shlex
from collections.abc import Iterator

from orchestrator.core.plan import Plan, PlannedWorker


def plan_text(plan: Plan) -> str:
    """Return the whole plan, ended by a newline. Give it a `masked_plan`: it hides nothing."""
    return "".join(f"{line}\n" for line in _lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    count = len(plan.workers)
    yield f"topology {plan.topology}: {count} {'worker' if count == 1 else 'workers'}"
    for role, engine in plan.engines.items():
        yield f"engine of {role}: {engine.name} ({engine.reason})"
    for gpu in plan.gpus:
        near = "" if gpu.numa is None else f", NUMA node {gpu.numa}"
        what = f"{gpu.name}, {gpu.total_bytes / 2**30:.1f} GiB{near}"
        yield f"gpu {gpu.index} ({gpu.uuid}): {what}: {', '.join(plan.users(gpu.uuid))}"
    yield from (f"note: {note}" for note in plan.notes)
    for worker in plan.workers:
        yield ""
        yield f"{worker.id}  {worker.kind}"
        for label, value in _facts(worker):
            yield f"  {label:9}{value}".rstrip()


def _facts(worker: PlannedWorker) -> Iterator[tuple[str, str]]:
    yield from _place(worker)
    yield from (("after", name) for name in worker.after)
    yield from _command(worker)
    for name, text in sorted((worker.cpu_env | worker.env).items()):
        yield "env", f"{name}={shlex.quote(text) if text else ''}"


def _place(worker: PlannedWorker) -> Iterator[tuple[str, str]]:
    if worker.model:
        served = [name for name in worker.served_names if name != worker.model]
        yield "model", worker.model + (f" as {', '.join(served)}" if served else "")
    if worker.engine:
        yield "engine", worker.engine
    if worker.serves is not None:
        yield "serves", f"{', '.join(worker.serves.models)} at {worker.serves.url}"
    yield "gpus", _gpus(worker)
    if worker.cpus:
        node = "" if worker.numa is None else f" (NUMA node {worker.numa})"
        yield "cpus", worker.cpu_ranges + node
    for name, port in sorted(worker.ports.items()):
        yield "port", f"{name} {port or _chosen(name, worker.port_counts.get(name, 1))}"


def _chosen(name: str, count: int) -> str:
    """Say when the daemon chooses a port."""
    if name == "rendezvous":
        return "(another one at each start)"
    row = f"{count} in a row, " if count > 1 else ""
    return f"({row}chosen once, then kept)"


def _command(worker: PlannedWorker) -> Iterator[tuple[str, str]]:
    said = (("python", worker.python), ("cwd", worker.cwd), ("entry", worker.entry))
    yield from ((label, text) for label, text in said if text)
    if worker.argv:
        yield "argv", shlex.join(worker.argv)
        return  # vLLM's options are its argv
    for name, value in sorted(worker.options.items()):
        yield "option", f"{name} = {json.dumps(value, sort_keys=True)}"


def _gpus(worker: PlannedWorker) -> str:
    if not worker.gpus:
        return "none"
    pairs = zip(worker.gpus, worker.gpu_uuids, strict=True)
    named = ", ".join(f"{index} ({uuid})" for index, uuid in pairs)
    return named if worker.gpu_share == 1.0 else f"{named}, {worker.gpu_share:g} of it"
