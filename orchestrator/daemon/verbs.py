"""What the daemon answers to an operator.

A verb is checked completely before anything is touched: a bad file, a missing GPU or a taken port
is refused with everything that is wrong at once, and nothing is half-started. Slow looking around
(NVML, ports) happens in a thread; starting and stopping are requests to the core, and the operator
watches their progress in the event stream.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec

from orchestrator.core import events
from orchestrator.core.inventory import Inventory
from orchestrator.daemon.changes import Changes, Objections
from orchestrator.daemon.deployment import Deployment
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.reading import FAILED, INVALID, RefusedError
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.targets import matching, unknown
from orchestrator.daemon.unit import Unit
from orchestrator.wire.messages import Reply, Verb

OK = 0
DRAIN_MAX_S = 7 * 86400.0
"""A drain without a limit ends after a week all the same: every wait has a bound."""


class Down(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `down`: a topology, or all of them; `now` skips drain and grace."""

    topology: str | None = None
    now: bool = False


class On(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arguments of `start`, `stop`, `restart` and `drain`.

    `rolling`: restart one replica of a role after the other. `limit_s`: how long a drain may
    take; without it, as long as there are requests.
    """

    target: str
    rolling: bool = False
    limit_s: Annotated[float, msgspec.Meta(ge=0, le=DRAIN_MAX_S)] | None = None


class Verbs:
    """The verbs by name."""

    def __init__(
        self,
        supervisor: Supervisor,
        deployments: Deployments,
        status: Callable[[], dict[str, Any]],
        watch: Callable[[Deployment, int], None],
        machine: Callable[[], Awaitable[Inventory]],
        *,
        preflight: Objections,
    ) -> None:
        self._supervisor = supervisor
        self._deployments = deployments
        self._snapshot = status
        self._changes = Changes(deployments, watch, machine, preflight)
        self._by_name: dict[str, Callable[[dict[str, Any]], Awaitable[Reply]]] = {
            "up": self._changes.up,
            "difference": self._changes.difference,
            "scale": self._changes.scale,
            "down": self._down,
            "status": self._status,
            "restart": self._restart,
            "start": self._start,
            "stop": self._stop,
            "drain": self._drain,
        }

    async def answer(self, verb: Verb) -> Reply:
        """Answer one verb."""
        handler = self._by_name.get(verb.name)
        if handler is None:
            return Reply(code=INVALID, text=f"no verb {verb.name!r} here: another version?")
        try:
            return await handler(verb.args)
        except RefusedError as refused:
            return refused.reply
        except msgspec.ValidationError as error:
            return Reply(code=INVALID, text=f"{verb.name}: {error}")

    async def _status(self, _args: dict[str, Any]) -> Reply:
        return Reply(code=OK, data=self._snapshot())

    async def _down(self, args: dict[str, Any]) -> Reply:
        down = msgspec.convert(args, Down)
        name, by_name = down.topology, self._deployments.by_name
        if name is not None and name not in by_name:
            known = ", ".join(by_name) or "none"
            raise RefusedError(FAILED, f"no topology {name!r} is up; up are: {known}")
        chosen = [by_name[name]] if name is not None else list(by_name.values())
        for found in chosen:
            self._deployments.begin_down(found, at_once=down.now)
        return Reply(code=OK, data={"topologies": [found.name for found in chosen]})

    def _units(self, target: str) -> list[Unit]:
        """The units that a target names; RefusedError when there is none, or they are leaving."""
        everything = self._supervisor.units.values()
        units = matching(everything, target)
        if not units:
            raise RefusedError(FAILED, unknown(everything, target))
        found = self._deployments.by_name[units[0].id.topology]
        if found.going_down:
            raise RefusedError(FAILED, f"{found.name} is going down")
        return units

    async def _start(self, args: dict[str, Any]) -> Reply:
        return self._ask(self._units(msgspec.convert(args, On).target), events.StartRequested)

    async def _restart(self, args: dict[str, Any]) -> Reply:
        on = msgspec.convert(args, On)
        units = self._units(on.target)
        if on.rolling:
            return self._changes.renew(units)
        return self._ask(units, events.RestartRequested)

    def _ask(self, units: list[Unit], make: Callable[[int], events.Event]) -> Reply:
        for unit in units:
            self._deployments.spare(unit)
            self._supervisor.request(unit, make)
        return _about(units)

    async def _stop(self, args: dict[str, Any]) -> Reply:
        units = self._units(msgspec.convert(args, On).target)
        self._deployments.begin_stop(units, None)
        return _about(units)

    async def _drain(self, args: dict[str, Any]) -> Reply:
        on = msgspec.convert(args, On)
        units = self._units(on.target)
        self._deployments.begin_stop(units, DRAIN_MAX_S if on.limit_s is None else on.limit_s)
        return _about(units)


def _about(units: list[Unit]) -> Reply:
    return Reply(code=OK, data={"replicas": [str(unit.id) for unit in units]})
