"""Every worker this frontend may use: the routing table made true, link by link.

The table is a wish; a link is routable here once it is connected and has answered. `answering` is
the newest table for which that holds in full: the daemon reads it in our beats, and so knows when
a change has really reached the clients. It doesn't wait for ever for servers that aren't ours.
"""

import itertools
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from orchestrator.wire.routes import Blocked, Route, Routes
from orchestrator.wire.sockets import Context
from workers.frontend import table
from workers.frontend.course import Stage
from workers.frontend.link import Link, State
from workers.frontend.picks import POLICIES, Turns
from workers.frontend.prefix import Chain, Prefixes
from workers.frontend.problems import Problem, unavailable

KINDS = {
    Stage.PREFILL: table.PREFILL,
    Stage.DECODE: frozenset({"decode"}),
    Stage.ALONE: table.SERVING,
}
"""Whom each stage of a request may be sent to."""


class _Line(msgspec.Struct):
    """Those who can be asked for one stage of one model's requests, and whose turn it is."""

    links: list[Link]
    turns: Turns


class _Pool(msgspec.Struct):
    """The workers of one model that can be used now, by stage."""

    prefill: _Line
    decode: _Line
    alone: _Line

    def of(self, stage: Stage) -> _Line:
        if stage is Stage.ALONE:
            return self.alone
        return self.decode if stage is Stage.DECODE else self.prefill

    def add(self, link: Link) -> None:
        for stage, kinds in KINDS.items():
            if link.route.kind in kinds:
                self.of(stage).links.append(link)

    def emptied(self) -> "_Pool":
        """Return one without workers that goes on with the turns of this one."""
        lines = (self.prefill, self.decode, self.alone)
        return _Pool(*(_Line([], line.turns) for line in lines))


def _new_pool() -> _Pool:
    return _Pool(_Line([], Turns()), _Line([], Turns()), _Line([], Turns()))


_NO_POOL = _new_pool()


class Upstreams:
    """Owns the links. `on_answering` is called whenever `answering` grows.

    `on_change`: called when other workers, or another table, are in use. `by_prefix`: picks depend
    on how a prompt begins.
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
        self.by_prefix = policy == "prefix"
        self._prefixes = Prefixes() if self.by_prefix else None
        self._pools: dict[str, _Pool] = {}
        self._two_stages: frozenset[str] = frozenset()
        self._known: list[str] = []

    def apply(self, routes: Routes) -> bool:
        """Take a table; False if it is older than the one in use."""
        if self.routes is not None and routes.version < self.routes.version:
            return False
        self.routes = routes
        self._two_stages = table.two_stage_models(routes)
        wanted = {route.life: route for route in routes.routes}
        for life in [life for life, link in self._links.items() if _elsewhere(link, wanted)]:
            gone = self._links.pop(life)
            if self._prefixes is not None:
                self._prefixes.forget(life)
            self._leaving.add(gone)
            gone.leave()
        for life, route in wanted.items():
            link = self._links.get(life)
            if link is None:
                new = self._links[life] = self._new(route)
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
        if model is not None and model in self._pools and self._pools[model].alone.links:
            return model
        if self.routes is None:
            return unavailable("The routing table hasn't arrived yet.")
        return table.choose(model, self._known)

    def pick(
        self, model: str, stage: Stage, tried: AbstractSet[str], beginnings: Chain = ()
    ) -> tuple[Link, str] | None:
        """Return a usable worker that isn't in `tried`, and the reason; None if there is none.

        `beginnings`: the prompt's, where the routing asks who has read them.
        """
        line = self._pools.get(model, _NO_POOL).of(stage)
        candidates, turns = line.links, line.turns
        if tried:
            candidates = [link for link in candidates if link.life not in tried]
        if not candidates:
            return None
        if self._prefixes is not None and stage is not Stage.DECODE:
            return self._prefixes.pick(candidates, turns, beginnings)
        return self._policy(candidates, turns)

    def others(self, model: str, stage: Stage, tried: AbstractSet[str]) -> int:
        """Count the usable workers that aren't in `tried`."""
        links = self._pools.get(model, _NO_POOL).of(stage).links
        return sum(link.life not in tried for link in links)

    def alive(self, life: str) -> bool:
        """Whether a life is in the table and its connection stands."""
        link = self._links.get(life)
        return link is not None and link.usable

    def in_two_stages(self, model: str) -> bool:
        """Whether requests for `model` go through prefill, if they can."""
        return model in self._two_stages or bool(self._pools.get(model, _NO_POOL).prefill.links)

    def degraded(self) -> list[str]:
        """Return the models whose prompts decode reads itself: no prefill worker can be used."""
        return sorted(
            model
            for model in self._two_stages & self._pools.keys()
            if self._pools[model].decode.links and not self._pools[model].prefill.links
        )

    def blocked(self, model: str, stage: Stage = Stage.ALONE) -> list[Blocked]:
        """List who is for that stage and can't serve, as the table says."""
        found = self.routes.blocked if self.routes is not None else []
        return [one for one in found if model in one.models and one.kind in KINDS[stage]]

    def returning(self, model: str, stage: Stage = Stage.ALONE) -> bool:
        """Say whether somebody for that stage was asked to restart, and isn't back yet."""
        return any(one.returns for one in self.blocked(model, stage))

    def recovering(self, model: str, stage: Stage = Stage.ALONE) -> bool:
        """Say whether somebody for that stage is on its way to another life."""
        return any(one.recovers for one in self.blocked(model, stage))

    def explain(self, model: str, stage: Stage = Stage.ALONE) -> Problem:
        """Say why nobody serves `model` now."""
        assert self.routes is not None
        kinds = table.PREFILL if stage is Stage.PREFILL else table.SERVING
        return table.cannot(model, self.routes.blocked, self.notes(), kinds)

    def notes(self) -> list[table.Note]:
        """Return a sentence for each worker in the table that can't be used from here."""
        return [
            table.Note(life, link.route.kind, _models(link), f"this frontend {_trouble(link)}")
            for life, link in self._links.items()
            if not link.usable
        ]

    def routable(self) -> dict[str, int]:
        """Count the routable workers of every model there is."""
        return {model: len(self._pools.get(model, _NO_POOL).alone.links) for model in self._known}

    def cards(self) -> list[dict[str, Any]]:
        """Return what those who serve say of their models: one entry per model, if routable."""
        engine = self.routes.engine if self.routes is not None else ""
        merged: dict[str, dict[str, Any]] = {}
        for link in self._links.values():
            if link.usable and link.route.kind in table.SERVING:
                for card in link.cards:
                    merged.setdefault(
                        card["id"], {**card, "engine": card.get("engine", link.engine or engine)}
                    )
        return list(merged.values())

    def _new(self, route: Route) -> Link:
        """Make the link that an endpoint needs."""
        identity = f"{self._life}/{next(self._sockets)}".encode()
        if not route.endpoint.startswith("http"):
            return Link(self._context, route, identity, self._ids, self._changed)
        # Only now: most topologies have no plain command that serves, and need no HTTP client.
        from workers.frontend.http_link import HttpLink  # noqa: PLC0415

        return HttpLink(self._context, route, identity, self._ids, self._changed)

    def _changed(self, link: Link) -> None:
        if link.state is State.CLOSED:
            self._leaving.discard(link)
        self._rebuild()

    def _rebuild(self) -> None:
        """Draw up who serves what, so that a pick is one look-up."""
        pools: dict[str, _Pool] = {}
        for link in self._links.values():
            if link.usable:
                for model in _models(link):
                    if model not in pools:
                        before = self._pools.get(model)
                        pools[model] = _new_pool() if before is None else before.emptied()
                    pools[model].add(link)
        self._pools = pools
        if self.routes is None:
            return
        served = [model for model, pool in pools.items() if pool.alone.links]
        self._known = table.known_models(self.routes, served)
        if self.on_change is not None:
            self.on_change()
        settled = all(link.settled for link in self._links.values())
        if settled and self.routes.version > self.answering:
            self.answering = self.routes.version
            self._on_answering()


def _elsewhere(link: Link, wanted: dict[str, Route]) -> bool:
    """Whether nobody is wanted where this link leads. A plain command may serve elsewhere now."""
    route = wanted.get(link.life)
    return route is None or route.endpoint != link.route.endpoint


def _models(link: Link) -> list[str]:
    """Return what it may be asked for: what the table says, and what it lists (adapters)."""
    listed = (card["id"] for card in link.cards)
    return list(dict.fromkeys([*link.route.models, *listed]))


def _trouble(link: Link) -> str:
    return f"{link.state.value}: {link.trouble}" if link.trouble else link.state.value
