"""Watches starts for signs of life, with a timer that exists only while something starts."""

import asyncio
from pathlib import Path

from orchestrator.core import stall
from orchestrator.core.state import Phase, Stage
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Heard, Unit
from orchestrator.wire.ids import LifeId, ReplicaId


class Stalls:
    """Publishes `start-stalled`, once per stall; the numbers are kept in each `Heard`."""

    def __init__(self, supervisor: Supervisor, publisher: Publisher) -> None:
        self._supervisor = supervisor
        self._publisher = publisher
        self._timer: asyncio.TimerHandle | None = None
        self._starting: set[ReplicaId] = set()

    def changed(self, unit: Unit) -> None:
        """Look while this one starts, and no longer."""
        if unit.state.phase is Phase.STARTING and is_watched(unit):
            self._starting.add(unit.id)
            if self._timer is None:
                self._arm()
        elif unit.id in self._starting:
            self._starting.discard(unit.id)
            if not self._starting and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _arm(self) -> None:
        period_s = min(
            stall.look_every_s(self._supervisor.units[replica].policy.start)
            for replica in self._starting
        )
        self._timer = asyncio.get_running_loop().call_later(period_s, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for replica in self._starting:
            unit = self._supervisor.units[replica]
            for index, member in enumerate(unit.state.members):
                life = unit.life(index)
                heard = unit.of(life)
                if heard is not None and member.stage is Stage.RUNNING and not member.ready:
                    self._look_at(unit, life, heard, now)
        self._arm()

    def _look_at(self, unit: Unit, life: LifeId, heard: Heard, now: float) -> None:
        try:
            log_bytes = Path(unit.spec.logs[life.member]).stat().st_size
        except OSError:
            log_bytes = 0
        sign = stall.Sign(log_bytes, heard.progress, heard.percent)
        limit_s = unit.policy.start.stall_event_s
        heard.stall, news = stall.look(heard.stall, sign, now, limit_s)
        if news:
            doing = f" while {heard.progress}" if heard.progress else ""
            self._publisher.event(
                life,
                "start-stalled",
                phase=unit.state.phase.value,
                reason=f"nothing new for {heard.stall.silent_s:.0f} s{doing}: "
                "neither its log nor its progress has changed",
                detail={"incarnation": str(life.incarnation)},
            )


def is_watched(unit: Unit) -> bool:
    """A start that leads to something: a oneshot works all its life, silently if it likes."""
    return unit.policy.has_readiness and not unit.policy.oneshot
