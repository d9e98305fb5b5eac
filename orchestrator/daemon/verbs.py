"""What the daemon answers to an operator.

A verb is checked completely before anything is touched: a bad file, a missing GPU or a taken port
is refused with everything that is wrong at once, and nothing is half-started. Slow looking around
(NVML, ports) happens in a thread; starting and stopping are requests to the core, and the operator
watches their progress in the event stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core import events
from orchestrator.core.placement import place, resolve_engines
from orchestrator.core.plan import Plan, build_plan
from orchestrator.daemon.deployment import Deployment, Kept
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.machine import machine, objections
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.targets import matching
from orchestrator.topology.load import FILE_BYTES_MAX, Invalid, parse
from orchestrator.topology.not_built import not_built
from orchestrator.topology.roles import EngineChoice
from orchestrator.topology.schema import Topology
from orchestrator.wire.messages import Reply, Verb

OK, FAILED, INVALID = 0, 1, 2


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `up`. `variables`: the values of what the file names as `${NAME}`.

    `watch_pid`: a foreground `up`; when that process ends, the topology goes down with it.
    """

    file: str
    variables: dict[str, str] = {}
    engine: EngineChoice = "auto"
    watch_pid: int = 0


class Down(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `down`: a topology, or all of them; `now` skips drain and grace."""

    topology: str | None = None
    now: bool = False


class On(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `start`, `stop` and `restart`."""

    target: str


class RefusedError(Exception):
    """An operator's error: the reply that says so."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.reply = Reply(code=code, text=text)


def read_text(path: Path) -> str:
    """A topology file's content; RefusedError when it can't be had."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise RefusedError(INVALID, f"{path}: is larger than {FILE_BYTES_MAX >> 20} MiB")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(INVALID, f"{path}: can't be read: {error}") from error


def read(kept: Kept) -> tuple[Topology, Plan]:
    """Topology and plan of a file's content. Raises RefusedError with everything wrong at once."""
    try:
        topology = parse(kept.text, kept.file, kept.variables)
    except Invalid as invalid:
        raise RefusedError(INVALID, "\n".join(map(str, invalid.complaints))) from invalid
    engines = resolve_engines(topology, kept.inventory, kept.engine)
    missing = not_built(topology, {name: each.name for name, each in engines.items()})
    if missing:
        raise RefusedError(INVALID, "\n".join(map(str, missing)))
    placements = place(topology, kept.inventory, kept.engine)
    if isinstance(placements, list):
        raise RefusedError(FAILED, "\n".join(f"{topology.name}/{each}" for each in placements))
    return topology, build_plan(topology, placements)


class Verbs:
    """The verbs by name."""

    def __init__(
        self,
        supervisor: Supervisor,
        deployments: Deployments,
        status: Callable[[], dict[str, Any]],
        watch: Callable[[Deployment, int], None],
    ) -> None:
        self._supervisor = supervisor
        self._deployments = deployments
        self._snapshot = status
        self._watch = watch
        self._by_name: dict[str, Callable[[dict[str, Any]], Awaitable[Reply]]] = {
            "up": self._up,
            "down": self._down,
            "status": self._status,
            "restart": self._request(events.RestartRequested),
            "start": self._request(events.StartRequested),
            "stop": self._request(events.StopRequested),
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

    async def _up(self, args: dict[str, Any]) -> Reply:
        up = msgspec.convert(args, Up)
        text = await asyncio.to_thread(read_text, Path(up.file))
        inventory = await asyncio.to_thread(machine)
        kept = Kept(
            file=up.file, text=text, variables=up.variables, engine=up.engine, inventory=inventory
        )
        topology, plan = read(kept)
        present: Deployment | None = self._deployments.by_name.get(topology.name)
        if present is not None:
            self._again(present, kept)
        else:
            wrong = await asyncio.to_thread(objections, topology, plan)
            if wrong:
                raise RefusedError(FAILED, "\n".join(wrong))
            self._deploy(Deployment(kept, topology, plan))
        self._deployments.start_all(topology.name)
        if up.watch_pid:
            self._watch(self._deployments.by_name[topology.name], up.watch_pid)
        return Reply(code=OK, data={"topology": topology.name, "adopted": present is not None})

    def _deploy(self, new: Deployment) -> None:
        """Take care of a topology, unless something came up while we looked around."""
        by_name = self._deployments.by_name
        if new.name in by_name:
            raise RefusedError(FAILED, f"{new.name} is being started by another `up`")
        for name, other in by_name.items():
            # It may not be bound yet, or not now; and the kernel lets our frontends share a port.
            if new.port and new.port == other.port:
                raise RefusedError(
                    FAILED,
                    f"{new.name}/frontend: port {new.port} is that of {name}, which is up; "
                    "set another [frontend] port",
                )
        try:
            self._deployments.deploy(new)
        except OSError as error:
            raise RefusedError(FAILED, f"{new.name} can't be written down: {error}") from error

    def _again(self, present: Deployment, kept: Kept) -> None:
        """`up` of what is up already: fine if nothing changed."""
        if present.going_down:
            raise RefusedError(FAILED, f"{present.name} is going down; wait for `dynorch down`")
        before = present.kept
        changed = [
            what
            for what, was, now in (
                ("the file's text", before.text, kept.text),
                ("a variable's value", before.variables, kept.variables),
                (f"--engine, which was {before.engine}", before.engine, kept.engine),
            )
            if was != now
        ]
        if changed:
            raise RefusedError(
                FAILED,
                f"{present.name} is up from {before.file}, and this differs: {', '.join(changed)}; "
                f"applying a difference is not built yet: `dynorch down {present.name}` first",
            )

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

    def _request(
        self, make: Callable[[int], events.Event]
    ) -> Callable[[dict[str, Any]], Awaitable[Reply]]:
        async def handler(args: dict[str, Any]) -> Reply:
            target = msgspec.convert(args, On).target
            units = matching(self._supervisor.units.values(), target)
            if not units:
                known = (
                    ", ".join(str(unit.id) for unit in self._supervisor.units.values()) or "nothing"
                )
                raise RefusedError(FAILED, f"{target!r} names nothing here; there is: {known}")
            going = {u.id.topology for u in units} & {
                name for name, found in self._deployments.by_name.items() if found.going_down
            }
            if going:
                raise RefusedError(FAILED, f"{', '.join(sorted(going))} is going down")
            for unit in units:
                self._supervisor.request(unit, make)
            return Reply(code=OK, data={"replicas": [str(unit.id) for unit in units]})

        return handler
