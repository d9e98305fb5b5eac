"""What plain commands say on their notify socket, turned into events: see `host.notify`.

Shims tell all the facts whenever one is new, and to each new daemon, so the newest facts are
compared with those before. A watchdog is a timer that each sign of life moves; a daemon that was
stopped itself, and so heard none, gives the process its whole time again.
"""

import asyncio

from orchestrator.core import events
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Phase
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.host.records import Said
from orchestrator.wire.ids import LifeId

SLEPT_S = 1.0
"""A timer that is so late has slept with its daemon."""


class Notices:
    """The facts by life (kept in `Unit.heard`), and the watchdogs."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._dogs: dict[LifeId, asyncio.TimerHandle] = {}

    def take(self, unit: Unit, life: LifeId, said: Said) -> None:
        """Note what a process has said by now, and post what follows."""
        heard = unit.of(life)
        if heard is None:
            return
        before, heard.said = heard.said or Said(), said
        if said.extended_until > before.extended_until:
            by_s = said.extended_until - asyncio.get_running_loop().time()
            self._post(life, events.MoreTimeAsked(life.member, life.incarnation, max(0.0, by_s)))
        self._on_start(unit, life, said)
        if said.stopping and not before.stopping:
            reason = Reason(Cause.UNREADY, "says that it is stopping")
            self._post(life, events.LeaseMissed(life.member, life.incarnation, reason))
        elif before.stopping and not said.stopping:
            self._post(life, events.LeaseRecovered(life.member, life.incarnation))
        if said.triggered and not before.triggered:
            self._give_up(life, "said WATCHDOG=trigger: it wants to be restarted")
        elif said.alive_at != before.alive_at:
            self._let_dog_wait(unit, life)

    def _on_start(self, unit: Unit, life: LifeId, said: Said) -> None:
        heard, asked = unit.of(life), unit.spec.ready
        if heard is None or unit.state.phase is not Phase.STARTING:
            return
        if asked is None or asked.kind != "notify":
            return
        if said.ready:
            self._post(life, events.BecameReady(life.member, life.incarnation))
        elif said.refused:
            heard.progress = f"READY=1 came from pid {said.refused}, not from the main process; "
            heard.progress += 'ready.notify = "all" would take it'
        else:
            heard.progress = said.status or "waits for its READY=1"

    def changed(self, unit: Unit) -> None:
        """Watch over what has become ready, and over nothing that isn't."""
        if unit.spec.watchdog_s is None:
            return
        ready = unit.state.phase is Phase.READY
        for life in [life for life in self._dogs if life.of == unit.id]:
            if not ready or life != unit.life(life.member):
                self._dogs.pop(life).cancel()
        for member in range(len(unit.state.members) if ready else 0):
            if unit.life(member) not in self._dogs:
                self._let_dog_wait(unit, unit.life(member))

    def watch_adopted(self) -> None:
        """Watch over what an earlier daemon watched."""
        for unit in self._supervisor.units.values():
            self.changed(unit)

    def close(self) -> None:
        """Watch over nobody any more."""
        for dog in self._dogs.values():
            dog.cancel()
        self._dogs.clear()

    def _let_dog_wait(self, unit: Unit, life: LifeId) -> None:
        limit_s = unit.spec.watchdog_s
        if limit_s is None or unit.state.phase is not Phase.READY:
            return
        if life in self._dogs:
            self._dogs[life].cancel()
        loop = asyncio.get_running_loop()
        due = loop.time() + limit_s
        self._dogs[life] = loop.call_at(due, self._bark, unit, life, due)

    def _bark(self, unit: Unit, life: LifeId, due: float) -> None:
        del self._dogs[life]
        if asyncio.get_running_loop().time() - due > SLEPT_S:
            self._let_dog_wait(unit, life)
        else:
            self._give_up(life, f"didn't say WATCHDOG=1 for {unit.spec.watchdog_s:g} s")

    def _give_up(self, life: LifeId, sentence: str) -> None:
        reason = Reason(Cause.UNHEALTHY, sentence, f"see `dynorch logs {life.of}`")
        self._post(life, events.LeaseExpired(life.member, life.incarnation, reason))

    def _post(self, life: LifeId, event: events.Event) -> None:
        self._supervisor.post(life.of, event)
