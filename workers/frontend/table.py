"""What the routing table says to people: which models exist, who can't serve, and why.

Pure. The daemon's table carries the replicas that can't serve with their reasons; the frontend
adds what only it knows (a worker in the table that it has no connection to). Every 404, 503 and
`/health` answer is made from these two and nothing else.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrator.wire.routes import Blocked, Routes
from workers.frontend.problems import Problem, bad_request, not_found, unavailable

SERVING = frozenset({"aggregated", "decode"})
"""Kinds of role that a client's request may be sent to; prefill is a stage of it, not its goal."""
PREFILL = frozenset({"prefill"})
TWO_STAGES = PREFILL | {"decode"}
SENTENCES_MAX = 4
"""Reasons told in one error message; the rest is counted."""


class Note(msgspec.Struct, frozen=True):
    """A worker that the table offers and this frontend can't use, and why."""

    life: str
    kind: str
    models: list[str]
    sentence: str


def known_models(routes: Routes, listed: Iterable[str] = ()) -> list[str]:
    """Return every model the topology has, whether it can be served now or not, sorted."""
    names = set(listed)
    for route in routes.routes:
        if route.kind in SERVING:
            names.update(route.models)
    for blocked in routes.blocked:
        if blocked.kind in SERVING:
            names.update(blocked.models)
    return sorted(names)


def choose(model: str | None, known: list[str]) -> str | Problem:
    """Return the model a request means: the one it names, or the only one there is."""
    if model is None and len(known) == 1:
        return known[0]
    if not known:
        return unavailable("No model is served yet: the topology has no worker for one.")
    if model is None:
        text = f"This server serves several models ({_names(known)}): say which in `model`."
        return bad_request(text, "model")
    if model not in known:
        text = f"The model `{model}` does not exist. This server serves {_names(known)}."
        return not_found(text, "model")
    return model


def two_stage_models(routes: Routes) -> frozenset[str]:
    """Return the models that have prefill or decode workers, usable now or not."""
    live = [route.models for route in routes.routes if route.kind in TWO_STAGES]
    missing = [blocked.models for blocked in routes.blocked if blocked.kind in TWO_STAGES]
    return frozenset(name for models in [*live, *missing] for name in models)


def sentences(
    model: str, blocked: list[Blocked], notes: list[Note], kinds: frozenset[str] = SERVING
) -> list[str]:
    """Return one sentence for each replica or worker of `model` that can't serve."""
    lines = [
        f"{one.replica} is {one.phase}: {one.reason}"
        for one in blocked
        if model in one.models and one.kind in kinds
    ]
    return lines + [
        f"{one.life}: {one.sentence}" for one in notes if model in one.models and one.kind in kinds
    ]


def cannot(
    model: str, blocked: list[Blocked], notes: list[Note], kinds: frozenset[str] = SERVING
) -> Problem:
    """Explain why nobody serves a model that exists, and when to ask again."""
    lines = sentences(model, blocked, notes, kinds)
    waits = [one.retry_after_s for one in blocked if model in one.models and one.kind in kinds]
    text = f"The model `{model}` can't be served now. {_some(lines)}."
    if kinds is PREFILL:
        text += " Decode workers may not read prompts by themselves ([kv-transfer] enforce)."
    return unavailable(text, min(waits, default=1.0))


def alone(model: str, blocked: list[Blocked], notes: list[Note]) -> str:
    """Say that decode does prefill's work, and why; a sentence without its full stop."""
    why = _some(sentences(model, blocked, notes, PREFILL))
    return f"no prefill worker for `{model}`, so decode reads its prompts too: {why}"


def _some(lines: list[str]) -> str:
    """Return the first few sentences, and how many more there are."""
    more = len(lines) - SENTENCES_MAX
    shown = lines[:SENTENCES_MAX] + ([f"and {more} more"] if more > 0 else [])
    return "; ".join(shown) or "no worker for it is in the routing table"


def health(
    routes: Routes | None,
    routable: dict[str, int],
    notes: list[Note],
    degraded: Sequence[str] = (),
    *,
    enforce: bool = False,
    draining: bool,
) -> tuple[int, dict[str, Any]]:
    """Return status and body of `/health`: 200 while every model has a routable worker.

    `degraded`: models whose prefill workers are all out of reach; with `enforce` that's an outage.
    """
    if routes is None:
        return 503, {"status": "unhealthy", "reason": "no routing table yet"}
    models = {
        name: {"routable": count, "reasons": sentences(name, routes.blocked, notes)}
        for name, count in sorted(routable.items())
    }
    body: dict[str, Any] = {
        "status": "healthy",
        "topology": routes.topology,
        "engine": routes.engine,
        "routes_version": routes.version,
        "models": models,
        "roles": _roles(routes, notes),
    }
    missing = sorted(name for name, count in routable.items() if count == 0)
    if draining:
        body |= {"status": "draining", "reason": "this frontend is stopping"}
    elif not routable:
        body |= {"status": "unhealthy", "reason": "no model is served"}
    elif missing:
        body |= {"status": "unhealthy", "reason": f"no routable worker for {_names(missing)}"}
    elif degraded and enforce:
        body |= {"status": "unhealthy", "reason": f"no prefill worker for {_names(degraded)}"}
    elif degraded:
        reasons = [alone(model, routes.blocked, notes) for model in degraded]
        body |= {"status": "degraded", "reason": "; ".join(reasons)}
    return (200 if body["status"] in {"healthy", "degraded"} else 503), body


def _roles(routes: Routes, notes: list[Note]) -> dict[str, Any]:
    """Count routable and blocked members by role."""
    unusable = {note.life for note in notes}
    roles: dict[str, Any] = {}
    for route in routes.routes:
        role = roles.setdefault(route.role, {"kind": route.kind, "routable": 0, "blocked": 0})
        role["blocked" if route.life in unusable else "routable"] += 1
    for blocked in routes.blocked:
        name = blocked.replica.partition("/")[2].rpartition("-")[0] or blocked.replica
        role = roles.setdefault(name, {"kind": blocked.kind, "routable": 0, "blocked": 0})
        role["blocked"] += 1
    return roles


def _names(models: Sequence[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)
