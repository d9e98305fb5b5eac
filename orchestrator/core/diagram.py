"""Draws the replica's table: the picture in `docs/replica-states.md` comes from the code.

`python -m orchestrator.core.diagram` prints the page; a test compares it with the file, so the
picture can't drift from what runs. Drawn are changes of phase; below it, the whole table says for
each event what is done about it in each phase.
"""

import re
import sys

from orchestrator.core import replica
from orchestrator.core.events import EVENTS, Event
from orchestrator.core.state import AT_REST, Phase

HEAD = """# The life of a replica

Generated from the table in `orchestrator/core/replica.py`; don't edit. To renew it:
`python -m orchestrator.core.diagram > docs/replica-states.md`

`waiting` may be passed through within one step, when nothing holds the start back, and so may
`stopping`, when every tree is empty already. What comes after `stopping` is decided when the last
tree is empty: `stopped` if that is wanted, `completed` if the work is done, `failed` if a budget
is used up, else `waiting`. At rest, without a deadline: {rest}.
"""
TABLE_HEAD = """
## Every cell

A name: what is done. `-`: ignored on purpose. Empty: impossible, `step` raises. Outdated events
(incarnation, serial, intent) never get this far.
"""
CONCLUDES = {Phase.STOPPED, Phase.WAITING, Phase.COMPLETED, Phase.FAILED}


def kebab(event: type[Event]) -> str:
    """Write an event's name as in a sentence."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", event.__name__).lower()


def edges() -> dict[tuple[Phase, Phase], list[str]]:
    """List the changes of phase, with the events that cause them."""
    found: dict[tuple[Phase, Phase], list[str]] = {}
    for (phase, event), done in replica.HANDLED.items():
        for target in done.to - {phase}:
            found.setdefault((phase, target), []).append(kebab(event))
    found[Phase.WAITING, Phase.STARTING] = ["nothing holds it back"]
    for target in CONCLUDES:
        found[Phase.STOPPING, target] = ["last tree empty"]
    return found


def picture() -> str:
    """Draw the phases as a mermaid state diagram."""
    order = list(Phase)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> stopped"]
    by_place = sorted(edges().items(), key=lambda e: (order.index(e[0][0]), order.index(e[0][1])))
    for (source, target), events in by_place:
        lines.append(f"    {source.value} --> {target.value}: {', '.join(sorted(events))}")
    return "\n".join([*lines, "```"])


def table() -> str:
    """Write all cells, one line per event."""
    phases = [phase.value for phase in Phase]
    lines = ["| event | " + " | ".join(phases) + " |", "| --- " * (len(phases) + 1) + "|"]
    for event in EVENTS:
        cells = [cell_text(phase, event) for phase in Phase]
        lines.append(f"| {kebab(event)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell_text(phase: Phase, event: type[Event]) -> str:
    """Write one cell."""
    done = replica.HANDLED.get((phase, event))
    if done is not None:
        return done.handle.__name__.replace("_", " ")
    return "-" if (phase, event) in replica.IGNORED else ""


def page() -> str:
    """Write the whole page."""
    rest = ", ".join(f"`{phase.value}`" for phase in Phase if phase in AT_REST)
    return HEAD.format(rest=rest) + "\n" + picture() + "\n" + TABLE_HEAD + "\n" + table() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
