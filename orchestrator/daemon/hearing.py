"""What workers say, turned into events for the core and facts for the views.

A message of a life that isn't the present one is answered by nothing and changes nothing. Beats
never enter the mailbox: they renew a lease and tell how the worker fares, and only the verdicts on
both (see `core.liveness`) are events. One timer
serves all leases, armed for the one that must be looked at first, so a daemon without workers that
beat has no timer at all.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from msgspec import structs

from orchestrator.core import events, liveness
from orchestrator.core.lease import Verdict
from orchestrator.core.state import LIVE, Phase
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Heard, Unit, foreign
from orchestrator.host import procfs
from orchestrator.wire import messages
from orchestrator.wire.ids import LifeId


class Speaker(Protocol):
    """What sends to a worker."""

    def send(self, life: LifeId, message: messages.ToWorker) -> None:
        """Send, if the worker is connected."""


class Hearing:
    """Hears workers and judges their silence.

    `on_hello(unit)`: one introduced itself. `on_applied(unit)`: a frontend has another table.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        on_hello: Callable[[Unit], None],
        on_applied: Callable[[Unit], None],
    ) -> None:
        self._supervisor = supervisor
        self._on_hello = on_hello
        self._on_applied = on_applied
        self._timer: asyncio.TimerHandle | None = None

    def take(self, speaker: Speaker, life: LifeId, message: messages.FromWorker) -> None:
        """Handle one message that came over the control socket."""
        unit = self._supervisor.units.get(life.of)
        heard = unit.of(life) if unit is not None else None
        if unit is None or heard is None:
            return
        match message:
            case messages.Hello():
                self._hello(unit, heard, life, message)
            case messages.Beat():
                if message.ready and unit.state.phase is Phase.STARTING:
                    # Its `Ready` went to a daemon that was dying.
                    self._post(life, events.BecameReady(life.member, life.incarnation))
                self._beat(speaker, unit, life, message)
                self._on_beat(unit, heard, message)
            case messages.Progress():
                heard.progress, heard.percent = message.text, message.percent
            case messages.Ready():
                if heard.hello is not None:
                    heard.hello = structs.replace(heard.hello, ready=True, models=message.models)
                self._post(life, events.BecameReady(life.member, life.incarnation))
            case messages.Drained():
                self._post(life, events.Drained(life.member, life.incarnation))
            case messages.Bye():
                bye = events.SaidBye(life.member, life.incarnation, message.code, message.text)
                self._post(life, bye)

    def _post(self, life: LifeId, event: events.Event) -> None:
        self._supervisor.post(life.of, event)

    def _hello(self, unit: Unit, heard: Heard, life: LifeId, hello: messages.Hello) -> None:
        heard.hello = hello
        if hello.protocol not in messages.PROTOCOLS:
            heard.foreign = foreign("worker", hello.protocol, messages.PROTOCOLS)
        if heard.watch is None:
            self._watch(heard)
        if hello.ready:
            self._post(life, events.BecameReady(life.member, life.incarnation))
        self._on_hello(unit)

    def _beat(self, speaker: Speaker, unit: Unit, life: LifeId, beat: messages.Beat) -> None:
        speaker.send(life, messages.Ack(beat.seq))
        heard = unit.of(life)
        assert heard is not None, "take checked it"
        if heard.hello is None:
            speaker.send(life, messages.Greet())
        if heard.watch is None:
            self._watch(heard)
        assert heard.watch is not None, "just granted"
        now = asyncio.get_running_loop().time()
        heard.watch, news = liveness.hear(heard.watch, _vitals(beat), now, unit.policy)
        if news is not None and news.verdict is Verdict.EXPIRED and not beat.stopped:
            life, news = _stopped_peer(unit) or (life, news)
        self._tell(life, news)

    def _tell(self, life: LifeId, news: liveness.Finding | None) -> None:
        """Make an event of a verdict that has changed."""
        if news is None:
            return
        if news.verdict is Verdict.FRESH:
            self._post(life, events.LeaseRecovered(life.member, life.incarnation))
        elif news.verdict is Verdict.MISSED:
            self._post(life, events.LeaseMissed(life.member, life.incarnation, news.reason))
        else:
            assert news.reason is not None, "a death has a reason"
            self._post(life, events.LeaseExpired(life.member, life.incarnation, news.reason))

    def _on_beat(self, unit: Unit, heard: Heard, beat: messages.Beat) -> None:
        before, heard.beat = heard.beat, beat
        if before is None or before.routes_version != beat.routes_version:
            self._on_applied(unit)

    def _watch(self, heard: Heard) -> None:
        heard.watch = liveness.begin(asyncio.get_running_loop().time())
        self._arm()

    def watch_adopted(self) -> None:
        """Grant a lease to every adopted member: a worker that never beats again must be missed."""
        for unit in self._supervisor.units.values():
            if unit.state.phase in LIVE and unit.spec.kind != "process":
                for member in range(len(unit.state.members)):
                    heard = unit.of(unit.life(member))
                    if heard is not None and heard.watch is None:
                        self._watch(heard)

    def _watched(self) -> list[tuple[Unit, LifeId, Heard, liveness.Watch]]:
        found = []
        for unit in self._supervisor.units.values():
            for member in unit.heard:
                life = unit.life(member)
                heard = unit.of(life)
                if heard is not None and heard.watch is not None:
                    found.append((unit, life, heard, heard.watch))
        return found

    def _arm(self) -> None:
        looks = [
            at
            for unit, _, _, watch in self._watched()
            if (at := liveness.next_look_at(watch, unit.policy)) is not None
        ]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if looks:
            self._timer = asyncio.get_running_loop().call_at(min(looks), self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for unit, life, heard, watch in self._watched():
            who = _who(life, heard)
            heard.watch, news = liveness.look(watch, who, now, unit.policy)
            self._tell(life, news)
        self._arm()


def _stopped_peer(unit: Unit) -> tuple[LifeId, liveness.Finding] | None:
    """Find the member of which the kernel says that it is stopped.

    Ranks wait for each other in every step, so if one is stopped none answers, and which of them is
    given up first is chance.
    """
    for member in unit.heard:
        peer = unit.of(unit.life(member))
        if peer is not None and peer.beat is not None and peer.beat.stopped:
            vitals = _vitals(peer.beat)
            return None if vitals is None else (unit.life(member), liveness.unanswered(vitals))
    return None


def _who(life: LifeId, heard: Heard) -> str:
    """Name the worker; with what the kernel says of its process, if that is stopped."""
    pid = heard.main_pid or (heard.hello.pid if heard.hello is not None else 0)
    process = procfs.stat(pid) if pid else None
    if process is not None and process.state in "Tt":
        return f"{life.worker} (pid {pid}, which is stopped)"
    return life.worker


def _vitals(beat: messages.Beat) -> liveness.Vitals | None:
    """What a ready worker says of itself; one that loads may block and be mute."""
    if not beat.ready:
        return None
    return liveness.Vitals(
        loop_age_s=beat.loop_age_s,
        loop_at=beat.loop_at,
        engine_age_s=beat.engine_age_s,
        suspect=beat.suspect,
        stopped=beat.stopped,
        stalled_s=beat.stalled_s,
        canaries_missed=beat.canaries_missed,
        canary_fault=beat.canary_fault,
        period_s=beat.period_s,
    )
