"""Keeps asking the plain commands that have a probe, and posts what follows from their answers.

For each probe of a living process there is at most one timer or one question on its way, never
both; a process without probes costs nothing. What an answer means is `core.probe`'s to say. A
question belongs to one life: when that ends the question is dropped, and should its answer come
all the same, it carries the incarnation it was asked of.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from orchestrator.core import events, probe
from orchestrator.core.probe import Probe, Verdict, Watch
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Phase, Stage
from orchestrator.daemon import asking
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.wire.ids import LifeId, ReplicaId

Key = tuple[ReplicaId, int, bool]


class Commands(Protocol):
    """What runs check commands."""

    async def ask(self, unit: Unit, life: LifeId, probe: Probe) -> str:
        """Run one; empty when it exited with 0."""


class Round:
    """The questions that one probe of one life leads to. `vital`: the liveness probe."""

    def __init__(self, unit: Unit, life: LifeId, watch: Watch, log_from: int) -> None:
        self.unit = unit
        self.life = life
        self.watch = watch
        self.log = asking.LogLook(unit.spec.logs[life.member], log_from)
        self.asked_at = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def probe(self) -> Probe | None:
        """As the file says now: a changed period holds from the next question on."""
        return self.unit.spec.live if self.watch.vital else self.unit.spec.ready

    def end(self) -> None:
        """Ask no more."""
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()


class Prober:
    """Rounds by life and purpose."""

    def __init__(self, supervisor: Supervisor, commands: Commands) -> None:
        self._supervisor = supervisor
        self._commands = commands
        self._rounds: dict[Key, Round] = {}

    def changed(self, unit: Unit) -> None:
        """Begin and end rounds as the unit's new state demands."""
        if unit.spec.ready is None and unit.spec.live is None:
            return
        for member in range(len(unit.spec.members)):
            for vital in (False, True):
                self._see_to(unit, member, vital=vital)

    def watch_adopted(self) -> None:
        """Go on asking what an earlier daemon asked."""
        for unit in self._supervisor.units.values():
            self.changed(unit)

    def close(self) -> None:
        """Ask nobody any more."""
        for one in self._rounds.values():
            one.end()
        self._rounds.clear()

    def _see_to(self, unit: Unit, member: int, *, vital: bool) -> None:
        key, life = (unit.id, member, vital), unit.life(member)
        wanted = self._is_wanted(unit, member, vital=vital)
        present = self._rounds.get(key)
        if present is not None and (not wanted or present.life != life):
            present.end()
            del self._rounds[key]
            present = None
        if wanted and present is None:
            heard = unit.of(life)
            is_ready = unit.state.phase is Phase.READY
            watch = Watch(vital=vital, ready=is_ready)
            begun = Round(unit, life, watch, heard.log_from if heard is not None else 0)
            begun.asked_at = asyncio.get_running_loop().time()
            self._rounds[key] = begun
            self._arm(begun)

    @staticmethod
    def _is_wanted(unit: Unit, member: int, *, vital: bool) -> bool:
        asked = unit.spec.live if vital else unit.spec.ready
        if asked is None or not asked.is_asked or member >= len(unit.state.members):
            return False
        phases = {Phase.READY} if vital else {Phase.STARTING, Phase.READY}
        return unit.state.phase in phases and unit.state.members[member].stage is Stage.RUNNING

    def _arm(self, one: Round) -> None:
        asked = one.probe
        pause_s = probe.pause_s(one.watch, asked) if asked is not None else None
        one.timer = None
        if pause_s is not None:
            loop = asyncio.get_running_loop()
            one.timer = loop.call_at(max(loop.time(), one.asked_at + pause_s), self._begin, one)

    def _begin(self, one: Round) -> None:
        one.timer = None
        one.asked_at = asyncio.get_running_loop().time()
        asked = one.probe
        if asked is None:
            return
        if asked.kind == "log":
            self._take(one, asked, "" if one.log.find(asked.target) else "not seen so far")
        else:
            one.task = asyncio.get_running_loop().create_task(self._ask(one, asked))

    async def _ask(self, one: Round, asked: Probe) -> None:
        try:
            # A command's time is its shim's to end; the little more is for the report of that.
            spare_s = 5.0 if asked.kind == "exec" else 0.0
            async with asyncio.timeout(asked.timeout_s + spare_s):
                why = await self._question(one, asked)
        except TimeoutError:
            why = f"no answer within {asked.timeout_s:g} s"
        one.task = None
        self._take(one, asked, why)

    def _question(self, one: Round, asked: Probe) -> Coroutine[Any, Any, str]:
        match asked.kind:
            case "http":
                return asking.http(asked.target)
            case "tcp":
                return asking.tcp(asked.target)
            case _:
                return self._commands.ask(one.unit, one.life, asked)

    def _take(self, one: Round, asked: Probe, why: str) -> None:
        """Judge an answer, post what follows, and arm the next question."""
        if self._rounds.get((one.life.of, one.life.member, one.watch.vital)) is not one:
            return  # its life is over
        if why:
            one.watch, verdict = probe.unanswered(one.watch, asked)
        else:
            one.watch, verdict = probe.answered(one.watch)
        heard = one.unit.of(one.life)
        if heard is not None and not one.watch.vital:
            heard.progress = f"waits for {asked}: {why}" if why and not one.watch.ready else ""
        if verdict is not None:
            self._post(one, asked, verdict, why)
        self._arm(one)

    def _post(self, one: Round, asked: Probe, verdict: Verdict, why: str) -> None:
        member, incarnation = one.life.member, one.life.incarnation
        event: events.Event
        match verdict:
            case Verdict.READY:
                event = events.BecameReady(member, incarnation)
            case Verdict.MISSED:
                advice = f"see `dynorch logs {one.life.of}`"
                unready = Reason(Cause.UNREADY, f"unready: {asked}: {why}", advice, why)
                event = events.LeaseMissed(member, incarnation, unready)
            case Verdict.BACK:
                event = events.LeaseRecovered(member, incarnation)
            case Verdict.DEAD:
                times = "once" if asked.misses_max == 1 else f"{asked.misses_max} times in a row"
                sentence = f"failed its liveness probe {times}: {asked}: {why}"
                advice = f"see `dynorch logs {one.life.of}`"
                reason = Reason(Cause.UNHEALTHY, sentence, advice, why)
                event = events.LeaseExpired(member, incarnation, reason)
        self._supervisor.post(one.life.of, event)
