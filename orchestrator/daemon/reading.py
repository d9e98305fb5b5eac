"""From a file's content to a topology and a plan, or to everything that is wrong with it at once.

Used before anything is touched, and again by the next daemon for what it adopts. A plan that was
kept is taken as it is: what runs was started from it, however plans are made meanwhile.
"""

from pathlib import Path

from orchestrator.core.placement import Placements, Refusal, place
from orchestrator.core.plan import Plan, build_plan
from orchestrator.daemon.deployment import Deployment, Kept, Source, patient, scaled
from orchestrator.topology.complaints import Finding
from orchestrator.topology.load import FILE_BYTES_MAX, Invalid, parse
from orchestrator.topology.not_built import not_built
from orchestrator.topology.schema import Topology
from orchestrator.wire.messages import Reply

FAILED, INVALID = 1, 2


class RefusedError(Exception):
    """An operator's error: the reply that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code=code, text=text)


def read_text(path: Path) -> str:
    """A topology file's content; RefusedError when it can't be had."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise RefusedError(INVALID, f"{path}: is larger than {FILE_BYTES_MAX >> 20} MiB")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(INVALID, f"{path}: can't be read: {error}") from error


def topology_of(source: Source) -> Topology:
    """Read a topology; RefusedError with everything that is wrong with it."""
    try:
        topology = parse(source.text, source.file, source.variables)
    except Invalid as invalid:
        raise RefusedError(INVALID, "\n".join(map(str, invalid.complaints))) from invalid
    missing = not_built(topology)
    if missing:
        raise RefusedError(INVALID, "\n".join(map(str, missing)))
    return patient(scaled(topology, source.scales), source.gpu_timeout_s)


def placed(topology: Topology, found: Placements | list[Refusal]) -> Placements:
    """The placements, or RefusedError with the lines of the file that can't be placed."""
    if isinstance(found, Placements):
        return found
    raise RefusedError(FAILED, "\n".join(unplaceable(topology, each) for each in found))


def unplaceable(topology: Topology, refusal: Refusal) -> str:
    """Say where in the file it stands that can't be placed on this machine."""
    table = "roles" if refusal.who in topology.roles else "processes"
    text = f"can't be placed: {refusal.text}"
    right = "ask for what this machine has"
    return str(topology.source.complaint(Finding((table, refusal.who, "gpus"), text, right)))


def read(kept: Kept) -> tuple[Topology, Plan]:
    """Topology and plan of a file's content. Raises RefusedError with everything wrong at once."""
    topology = topology_of(kept.source)
    if kept.plan is not None:
        return topology, kept.plan
    placements = placed(topology, place(topology, kept.inventory, kept.engine))
    return topology, build_plan(topology, placements)


def adopted(kept: Kept) -> Deployment:
    """A topology that another daemon had up. Raises RefusedError when it makes no sense now."""
    topology, plan = read(kept)
    olds = {key: topology_of(source) for key, source in kept.sources.items()}
    return Deployment(kept, topology, plan, olds)
