"""A difference as text: what would restart, start and stop, and which keys say so.

One line for each replica and key, in the order of the plan, nothing that depends on the time: the
same file beside the same state prints the same bytes, whether as a forecast or as it is done.
"""

from collections.abc import Iterator

from orchestrator.wire.changes import Changes

VERBS = {
    "restart": "restart",
    "add": "start",
    "remove": "stop",
    "live": "apply to",
}
WHY_MAX = 12
"""More keys than this of one replica are counted."""


def changes_text(found: Changes) -> str:
    """Return the whole difference, ended by a newline."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Changes) -> Iterator[str]:
    counts = {kind: sum(1 for each in found.changes if each.kind == kind) for kind in VERBS}
    said = ", ".join(f"{count} to {VERBS[kind]}" for kind, count in counts.items() if count)
    if not found.adopted:
        said = f"not up; {said}"
    yield f"{found.topology}: {said or 'nothing changes'}"
    for each in found.changes:
        if each.kind in VERBS:
            what = VERBS[each.kind] if each.kind != "live" else "live"
            why = each.why[:WHY_MAX]
            more = len(each.why) - len(why)
            yield f"  {what:8}{each.replica}"
            yield from (f"            {line}" for line in why)
            if more:
                yield f"            and {more} more"
