"""Every key of the file as a page for people, made from the same models that judge it.

`docs/topology.md` holds what this returns (`python -m orchestrator.topology.reference` writes it)
and a test compares the two, so the page can't fall behind the schema.
"""

import sys
from typing import Any

from orchestrator.topology.json_schema import json_schema
from orchestrator.topology.not_built import ROWS

INTRO = """\
# The topology file

Every key, its default and what it does. `dynorch validate FILE` reports all mistakes at once, each
with file, line, key, what is wrong and what would be right. `dynorch schema -o FILE` writes a JSON
Schema; with `#:schema ./topology.schema.json` in the first line, editors complete and check while
you type.

Durations and sizes are strings with units (`"90s"`, `"250ms"`, `"20GiB"`). `${VAR}` and
`${VAR:-default}` are expanded from the environment of whoever calls `dynorch up`.
"""

TITLES = {
    "Topology": "Top level",
    "Frontend": "[frontend]",
    "EngineRole": "[roles.NAME]",
    "Sim": "[roles.NAME.sim]",
    "Fault": "[[roles.NAME.sim.faults]]",
    "Process": "[processes.NAME]",
    "Group": "[groups.NAME]",
    "Readiness": "[processes.NAME.ready]: one of the first five",
    "Liveness": "[processes.NAME.live]: one of the first three",
    "KvTransfer": "[kv-transfer]",
    "RestartPolicy": "[restart], also inside a role, the frontend or a process",
    "StartPolicy": "[start], likewise",
    "StopPolicy": "[stop], likewise",
    "LogPolicy": "[log], likewise",
    "GpuPolicy": "[gpu], also inside a role or a process",
    "LivenessPolicy": "[liveness], also inside a role or the frontend",
}


def reference() -> str:
    """The whole page."""
    schema = json_schema()
    tables = {"Topology": schema, **schema["$defs"]}
    parts = [INTRO]
    for name, title in TITLES.items():
        parts.append(f"## {title}\n\n" + _table(tables[name]))
    parts.append(
        "## Not built yet\n\nThe schema knows these; `validate` and `plan` accept them, `up` "
        "refuses them:\n\n" + "\n".join(f"- {row.feature}" for row in ROWS) + "\n"
    )
    return "\n".join(parts)


def _table(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = ["| key | default | |", "| --- | --- | --- |"]
    for key, each in schema["properties"].items():
        default = "**required**" if key in required else _default(each)
        text = each.get("description", "").replace("|", "\\|")
        lines.append(f"| `{key}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


def _default(schema: dict[str, Any]) -> str:
    value = schema.get("default")
    if value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
