"""What the routing table says to people: which models exist, who can't serve, and why.

Pure. The daemon's table carries the replicas that can't serve with their reasons; the frontend
adds what only it knows (a worker in the table that it has no connection to). Every 404, 503 and
`/health` answer is made from these two and nothing else.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from orchestrator.wire.routes import Blocked, Routes
from workers.frontend.problems import Problem, bad_request, not_found, unavailable

SERVING = frozenset({"aggregated", "decode"})
"""Kinds of role that a client's request may be sent to; prefill is a stage of it, not its goal."""
SENTENCES_MAX = 4
"""Reasons told in one error message; the rest is counted."""


class Note(msgspec.Struct, frozen=True):
    """A worker that the table offers and this frontend can't use, and why."""

    life: str
    role: str
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


def sentences(model: str, blocked: list[Blocked], notes: list[Note]) -> list[str]:
    """Return one sentence for each replica or worker of `model` that can't serve."""
    lines = [
        f"{one.replica} is {one.phase}: {one.reason}" for one in blocked if model in one.models
    ]
    return lines + [f"{one.life}: {one.sentence}" for one in notes if model in one.models]


def cannot(model: str, blocked: list[Blocked], notes: list[Note]) -> Problem:
    """Explain why nobody serves a model that exists, and when to ask again."""
    lines = sentences(model, blocked, notes) or ["no worker for it is in the routing table"]
    more = len(lines) - SENTENCES_MAX
    shown = lines[:SENTENCES_MAX] + ([f"and {more} more"] if more > 0 else [])
    waits = [one.retry_after_s for one in blocked if model in one.models]
    text = f"The model `{model}` can't be served now. {'; '.join(shown)}."
    return unavailable(text, min(waits, default=1.0))


def health(
    routes: Routes | None, routable: dict[str, int], notes: list[Note], *, draining: bool
) -> tuple[int, dict[str, Any]]:
    """Return status and body of `/health`: 200 while every model has a routable worker."""
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
    return (200 if body["status"] == "healthy" else 503), body


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


def _names(models: list[str]) -> str:
    return ", ".join(f"`{model}`" for model in models)
