"""Verbs that only read a file: `validate`, `plan`, `schema`. They need no daemon and no GPU."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.cli.main import INVALID, fail
from orchestrator.topology.load import Invalid, load, referenced_variables
from orchestrator.topology.schema import Topology

if TYPE_CHECKING:
    from orchestrator.core.plan import Plan


def variables_of(text: str) -> dict[str, str]:
    """The values that this environment has for the variables that a file names."""
    return {name: os.environ[name] for name in referenced_variables(text) if name in os.environ}


def read(file: Path, *, engine: str | None = None) -> Topology:
    """Load a topology, or print every complaint and exit with 2.

    `engine`: what `--engine` says to a verb that runs the file. It is also refused, then, for what
    is valid and not built yet, and advice is told.
    """
    try:
        topology = load(file, os.environ)
    except Invalid as invalid:
        complaints = invalid.complaints
        for complaint in complaints:
            print(complaint, file=sys.stderr)
        number = len(complaints)
        fail(f"{file}: {number} mistake{'s' * (number != 1)}; nothing was started", INVALID)
    if engine is not None and _notes(topology, ""):
        fail(f"{file}: asks for what is not built yet; nothing was started", INVALID)
    if engine is not None:
        _advise(topology)
    return topology


def _notes(topology: Topology, lead: str) -> bool:
    """Name on stderr what of a topology is not built yet; whether there is anything."""
    from orchestrator.topology.not_built import not_built

    missing = not_built(topology)
    for each in missing:
        print(f"{lead}{each}", file=sys.stderr)
    return bool(missing)


def _advise(topology: Topology) -> None:
    """Tell on stderr what is valid and has a price."""
    from orchestrator.topology.advice import advice

    for each in advice(topology):
        print(f"note: {each}", file=sys.stderr)


def validate(file: Path) -> int:
    """Check a file; say what was understood."""
    topology = read(file)
    roles = ", ".join(
        f"{name} ({role.kind}, {role.replicas})" for name, role in topology.roles.items()
    )
    parts = [f"roles: {roles}"] if roles else []
    if topology.processes:
        parts.append("processes: " + ", ".join(topology.processes))
    print(f"{file}: valid; {topology.name}; {'; '.join(parts)}")
    _advise(topology)
    if _notes(topology, "note: "):
        print("note: `dynorch up` refuses it for that", file=sys.stderr)
    return 0


def plan(file: Path, engine: str, gpus: str | None, *, as_json: bool) -> int:
    """Print what would run where."""
    from orchestrator.core.plan import masked_plan
    from orchestrator.views.plan_text import plan_text

    topology = read(file)
    found = planned(topology, engine, gpus)
    shown = masked_plan(found)
    if as_json:
        print(json.dumps(msgspec.to_builtins(shown, str_keys=True), indent=2))
    else:
        sys.stdout.write(plan_text(shown))
    _notes(topology, "note: not in this plan: ")
    _advise(topology)
    return 0


def planned(topology: Topology, engine: str, gpus: str | None = None) -> "Plan":
    """Plan a topology for this machine, or for declared `gpus`; exit with what doesn't fit."""
    from orchestrator.core.placement import place
    from orchestrator.core.plan import build_plan
    from orchestrator.daemon.reading import RefusedError, placed
    from orchestrator.host.gpu_provider import ProviderError

    try:
        inventory = _declared(gpus) if gpus else _machine(topology)
    except ProviderError as error:
        fail(str(error), INVALID)
    except (ValueError, OSError) as error:
        fail(f"--gpus: {error}", INVALID)
    try:
        placements = placed(topology, place(topology, inventory, engine_choice(engine)))
    except RefusedError as refused:
        fail(str(refused))
    return build_plan(topology, placements)


def engine_choice(engine: str) -> Any:
    """Check what `--engine` says."""
    if engine not in {"auto", "vllm", "sim"}:
        fail(f"--engine: {engine!r} is no engine; auto, vllm or sim", INVALID)
    return engine


def _declared(text: str) -> Any:
    """Read what `--gpus` says: one line, or the file behind an @."""
    from orchestrator.core import declared

    if text.startswith("@"):
        return declared.read(Path(text[1:]).read_text(encoding="utf-8"))
    return declared.declared(text)


def _machine(topology: Topology) -> Any:
    from orchestrator.daemon.machine import cpu_builds, machine

    return msgspec.structs.replace(machine(), cpu_pythons=cpu_builds(topology))


def schema(output: Path | None) -> int:
    """Print or write the JSON Schema."""
    from orchestrator.topology.json_schema import json_schema

    text = json.dumps(json_schema(), indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
        print(f"wrote {output}; put `#:schema {output}` in the first line of a topology")
    return 0
