"""The last words of `up`: where it answers, a line to try it with, and how to stop it.

Whoever starts a deployment for the first time must be able to copy one line and see an answer. If
that answer comes from the simulated engine, the banner says so before anything else: made-up text
that looks like a model's is the one surprise that nobody forgives.
"""

import json
import shlex

from orchestrator.views import words
from orchestrator.views.ink import Line, Span, Tone
from orchestrator.views.rows import topology_rows
from orchestrator.wire.snapshot import Snapshot, TopologyStatus


def curl_line(topology: TopologyStatus) -> str:
    """Write a command that asks the topology's first model something; empty if nothing answers."""
    if not topology.endpoint or not topology.models:
        return ""
    body = {
        "model": topology.models[0],
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 32,
    }
    return shlex.join(
        ["curl", "-sS", f"{topology.endpoint}/v1/chat/completions",
         "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    )  # fmt: skip


def up_banner(
    snapshot: Snapshot, name: str, *, foreground: bool, command: str = "dynorch"
) -> list[Line]:
    """Say that topology `name` is up. `foreground`: Ctrl-C stops it, else `down` does.

    `command`: what has to be typed for `dynorch`, so that each line can be copied.
    """
    topology = find(snapshot, name)
    tone = words.look(topology.health)[1]
    lines: list[Line] = [[], [Span(name, "bold"), Span(" is "), Span(topology.health, tone)]]
    if topology.reason:
        lines[-1].append(Span(f": {words.one_line(topology.reason)}"))
    if topology.engine == "sim":
        lines += [
            [Span("  SIMULATED ENGINE: no model runs, every answer is made up", "warn")],
        ]
    stop = f"Ctrl-C, or `{command} down {name}`" if foreground else f"{command} down {name}"
    for label, text in (
        ("endpoint", words.endpoint(topology)),
        ("engine", "" if topology.engine == "sim" else topology.engine),
        ("try it", curl_line(topology)),
        ("watch", f"{command} top"),
        ("logs", f"{command} logs -f {name}  ({snapshot.daemon.state_dir}/logs/{name}/)"),
        ("stop", stop),
    ):
        if text:
            lines.append([Span(f"  {label:10}", "dim"), Span(text)])
    return lines


def trouble(topology: TopologyStatus, log_lines: list[str]) -> list[Line]:
    """Say why a topology isn't up: each replica that isn't, its reason, advice and log.

    `log_lines` is the end of the first failed replica's log; the last line said is the reason,
    as the last line of a failed command should be.
    """
    lines: list[Line] = []
    culprits = [r for r in topology_rows(topology) if r.level == "replica" and r.phase != "ready"]
    for row in sorted(culprits, key=lambda row: row.phase != "failed"):
        lines.append([Span(row.id, row.tone), Span(f" {row.phase}: {row.note}")])
        said: tuple[tuple[str, str, Tone], ...] = (
            ("seen", row.evidence, "dim"),
            ("to do", row.advice, "bold"),
            ("log", row.log, "dim"),
        )
        lines += [[Span(f"    {label}: {text}", tone)] for label, text, tone in said if text]
    lines += [[Span(f"    | {words.one_line(line)}", "dim")] for line in log_lines]
    last = words.one_line(topology.reason) or (culprits[0].note if culprits else "")
    lines.append([Span(f"{topology.name} {topology.health}: {last}", "bad")])
    return lines


def find(snapshot: Snapshot, name: str) -> TopologyStatus:
    """Look a topology up by name; one that isn't there is stopped."""
    for topology in snapshot.topologies:
        if topology.name == name:
            return topology
    return TopologyStatus(name=name, health="stopped")
