"""Every worker this frontend may use: the routing table made true, link by link.

The table is a wish; a link is routable here once it is connected and has answered. `answering` is
the newest table for which that holds in full: the daemon reads it in our beats, and so knows when
a change has really reached the clients.
"""

import itertools
from collections.abc import Callable
from typing import Any

from orchestrator.wire.routes import Routes
from orchestrator.wire.sockets import Context
from workers.frontend import table
from workers.frontend.link import Link, State
from workers.frontend.picks import POLICIES, Turns
from workers.frontend.problems import Problem, unavailable

TURNS_MAX = 1024
"""Models whose rotation is remembered; with more, all rotations start anew."""


class Upstreams:
    """Owns the links. `on_answering` is called whenever `answering` grows.

    `on_change`: called when other workers, or another table, are in use.
    """

    def __init__(
        self, context: Context, life: str, policy: str, on_answering: Callable[[], None]
    ) -> None:
        self.routes: Routes | None = None
        self.answering = 0
        self.on_change: Callable[[], None] | None = None
        self._context = context
        self._life = life
        self._policy = POLICIES[policy]
        self._on_answering = on_answering
        self._ids = itertools.count(1)
        self._sockets = itertools.count(1)
        self._links: dict[str, Link] = {}
        self._leaving: set[Link] = set()
        self._turns: dict[str, Turns] = {}
        self._candidates: dict[str, list[Link]] = {}
        self._known: list[str] = []

    def apply(self, routes: Routes) -> bool:
        """Take a table; False if it is older than the one in use."""
        if self.routes is not None and routes.version < self.routes.version:
            return False
        self.routes = routes
        wanted = {route.life: route for route in routes.routes if route.kind in table.SERVING}
        for life in [life for life in self._links if life not in wanted]:
            gone = self._links.pop(life)
            self._leaving.add(gone)
            gone.leave()
        for life, route in wanted.items():
            link = self._links.get(life)
            if link is None:
                identity = f"{self._life}/{next(self._sockets)}".encode()
                new = Link(self._context, route, identity, self._ids, self._changed)
                self._links[life] = new
                new.start()
            else:
                link.stay(route)
        self._rebuild()
        return True

    def close(self) -> None:
        """Drop every connection."""
        for link in [*self._links.values(), *self._leaving]:
            link.close()
        self._links.clear()
        self._leaving.clear()
        self._rebuild()

    def choose(self, model: str | None) -> str | Problem:
        """Return the model that a request means, or why there is none."""
        if model is not None and model in self._candidates:
            return model
        if self.routes is None:
            return unavailable("The routing table hasn't arrived yet.")
        return table.choose(model, self._known)

    def pick(self, model: str, tried: set[str]) -> tuple[Link, str] | None:
        """Return a routable worker that isn't in `tried`, and the reason; None if there is none."""
        candidates = self._candidates.get(model, [])
        if tried:
            candidates = [link for link in candidates if link.route.life not in tried]
        if not candidates:
            return None
        turns = self._turns.get(model)
        if turns is None:
            if len(self._turns) >= TURNS_MAX:
                self._turns.clear()
            turns = self._turns.setdefault(model, Turns())
        return self._policy(candidates, turns)

    def others(self, model: str, tried: set[str]) -> int:
        """Count the routable workers that aren't in `tried`."""
        return sum(link.route.life not in tried for link in self._candidates.get(model, []))

    def returning(self, model: str) -> bool:
        """Say whether somebody who serves `model` was asked to restart, and isn't back yet."""
        blocked = self.routes.blocked if self.routes is not None else []
        return any(one.returns and model in one.models for one in blocked)

    def explain(self, model: str) -> Problem:
        """Say why nobody serves `model` now."""
        assert self.routes is not None
        return table.cannot(model, self.routes.blocked, self.notes())

    def notes(self) -> list[table.Note]:
        """Return a sentence for each worker in the table that can't be used from here."""
        return [
            table.Note(life, link.route.role, _models(link), f"this frontend {_trouble(link)}")
            for life, link in self._links.items()
            if not link.usable
        ]

    def routable(self) -> dict[str, int]:
        """Count the routable workers of every model there is."""
        return {model: len(self._candidates.get(model, [])) for model in self._known}

    def cards(self) -> list[dict[str, Any]]:
        """Return what the workers say of their models: one entry per model, routable ones only."""
        engine = self.routes.engine if self.routes is not None else ""
        merged: dict[str, dict[str, Any]] = {}
        for link in self._links.values():
            if link.usable:
                for card in link.cards:
                    merged.setdefault(card["id"], {**card, "engine": card.get("engine", engine)})
        return list(merged.values())

    def _changed(self, link: Link) -> None:
        if link.state is State.CLOSED:
            self._leaving.discard(link)
        self._rebuild()

    def _rebuild(self) -> None:
        """Draw up who serves what, so that a pick is one look-up."""
        candidates: dict[str, list[Link]] = {}
        for link in self._links.values():
            if link.usable:
                for model in _models(link):
                    candidates.setdefault(model, []).append(link)
        self._candidates = candidates
        if self.routes is None:
            return
        self._known = table.known_models(self.routes, candidates)
        if self.on_change is not None:
            self.on_change()
        settled = all(link.usable for link in self._links.values())
        if settled and self.routes.version > self.answering:
            self.answering = self.routes.version
            self._on_answering()


def _models(link: Link) -> list[str]:
    """Return what it may be asked for: what the table says, and what it lists (adapters)."""
    listed = (card["id"] for card in link.cards)
    return list(dict.fromkeys([*link.route.models, *listed]))


def _trouble(link: Link) -> str:
    return f"{link.state.value}: {link.trouble}" if link.trouble else link.state.value
