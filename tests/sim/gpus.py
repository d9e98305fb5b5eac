"""The cards: who really holds memory of which, and when it comes back.

A dead life's memory is freed late, foreign processes come and go, and now and then one sample shows
a card empty that isn't. The gate under test sees only samples; the oracle sees the truth.
"""

from dataclasses import dataclass, field

from orchestrator.core import gate
from orchestrator.core.devices import Device, Memory, Trouble
from orchestrator.core.policy import GpuMode
from orchestrator.core.state import LIVE, Hold, Phase

GIB = 2**30
TOTAL = 80 * GIB
FURNITURE = GIB // 4
WEIGHT = {GpuMode.EXCLUSIVE: 70 * GIB, GpuMode.SHARED: 30 * GIB}
SHARE = 0.4
NEVER = 1e12
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 30.0
"""A wait in which nothing happens is looked at less and less often: seeds shall be quick."""


@dataclass
class Card:
    uuid: str
    mode: GpuMode = GpuMode.EXCLUSIVE
    foreign_until: float = 0.0
    came_at: float = 0.0
    held: dict = field(default_factory=dict)
    dipped: bool = False
    known: object = None

    def used(self, now: float) -> int:
        ours = {key[0::2] for key, until in self.held.items() if until > now}
        foreign = WEIGHT[GpuMode.EXCLUSIVE] * (self.foreign_until > now)
        return min(TOTAL, FURNITURE + len(ours) * WEIGHT[self.mode] + foreign)

    def is_free(self, used: int) -> bool:
        """In numbers of its own: furniture and some slack, or room for one more."""
        if self.mode is GpuMode.EXCLUSIVE:
            return used < 2 * GIB
        return TOTAL - used >= SHARE * TOTAL + GIB // 4

    def reading(self, world):
        """What a sample says: the truth, but for a dip that never comes twice in a row."""
        used = self.used(world.now)
        if world.faults and world.rng.random() < 0.02:
            return Trouble("NVML: unknown error")
        self.dipped = not self.dipped and world.faults and world.rng.random() < 0.1
        if self.dipped:
            used = FURNITURE
        return Memory(total_bytes=TOTAL, used_bytes=used, free_bytes=TOTAL - used)


@dataclass
class Cards:
    """The machine's cards, and which replica is to have which."""

    world: object
    cards: dict = field(default_factory=dict)
    of: dict = field(default_factory=dict)
    looked_at: tuple = (0.0, 0.0, 0.0)

    def born(self, life) -> None:
        for uuid in self.of.get(life.replica, ()):
            card = self.cards[uuid]
            card.held[life.replica, life.member, life.incarnation] = NEVER

    def gone(self, life) -> None:
        """The tree is empty; the driver takes its time."""
        for uuid in self.of.get(life.replica, ()):
            key = life.replica, life.member, life.incarnation
            if self.cards[uuid].held.get(key) == NEVER:
                late_s = life.plan.frees_s if self.world.faults else 0.0
                self.cards[uuid].held[key] = self.world.now + late_s

    def intrude(self) -> None:
        """Somebody else takes a card for a while."""
        world = self.world
        if not world.faults or not self.cards:
            return
        card = world.rng.choice(list(self.cards.values()))
        if card.is_free(card.used(world.now)):
            card.came_at = world.now
            card.foreign_until = world.now + world.rng.choice((0.4, 5.0, 45.0))
        world.at(world.rng.expovariate(1 / 120), self.intrude)

    def release(self) -> None:
        """Faults stop: all that nobody lives to hold is given back."""
        for card in self.cards.values():
            card.foreign_until = 0.0
            for key, until in card.held.items():
                card.held[key] = until if until == NEVER else self.world.now

    def check_free(self, name: str) -> None:
        """At the moment of a start nobody holds what this replica needs.

        Who came after the last sample but one can't have been seen, should the last one be wrong.
        """
        now = self.world.now
        # What was seen in this very instant still lies in the mailbox.
        seen_until = [at for at in self.looked_at if at < now][-2:][0]
        for uuid in self.of.get(name, ()):
            card = self.cards[uuid]
            unseen = card.came_at >= seen_until
            assert unseen or card.is_free(card.used(now)), f"{name}: started on {uuid}, not free"
            for other, uuids in self.of.items():
                if other != name and uuid in uuids:
                    phase = self.world.daemon.state(other).phase
                    assert phase is not Phase.STARTING, f"{name}: started beside {other} on {uuid}"
                    unborn = other in self.world.unborn()
                    assert not unborn, f"{name}: started on {uuid}, where {other} is being born"


class Sampler:
    """What the daemon does around the gate: look while somebody waits, and say what came of it."""

    def __init__(self, daemon, cards: Cards) -> None:
        self.daemon, self.cards, self.world = daemon, cards, daemon.world
        self.gate, self.armed, self.pause_s = gate.Gate(), False, FIRST_PAUSE_S

    def waiters(self):
        of = self.cards.of
        for unit in self.daemon.units() if of else ():
            state = unit.state
            if state.phase is not Phase.WAITING:
                continue
            uuids = of.get(str(unit.id), ())
            if uuids and not state.holds.keys() - {Hold.GPU, Hold.TURN}:
                yield (
                    unit,
                    gate.Waiter(
                        replica=unit.id,
                        incarnation=state.incarnation,
                        devices=tuple(Device(uuid) for uuid in uuids),
                        policy=unit.spec.policy.gpu,
                        hold=state.holds.get(Hold.GPU),
                    ),
                )

    def arm(self, delay_s: float = 0.0) -> None:
        if self.armed:
            return
        waits = [unit.state.not_before - gate.LEAD_S for unit, _ in self.waiters()]
        if waits:
            self.armed = True
            at = max(self.world.now + delay_s, min(waits))
            self.daemon.loop.call_at(at, self.look)

    def look(self) -> None:
        self.armed = False
        now = self.world.now
        self.cards.looked_at = *self.cards.looked_at[1:], now
        waiters = [w for unit, w in self.waiters() if gate.looks_at(unit.state, now)]
        occupants = [
            gate.Occupant(
                replica=unit.id, uuids=frozenset(self.cards.of.get(str(unit.id), ())),
                phase=unit.state.phase, mode=unit.spec.policy.gpu.mode,
                grows=gate.may_grow(unit.state),
            )
            for unit in self.daemon.units() if unit.state.phase in LIVE
        ]  # fmt: skip
        cards = self.cards.cards
        wanted = sorted(gate.wanted(waiters, occupants))  # a set's order isn't the seed's
        readings = {uuid: cards[uuid].reading(self.world) for uuid in wanted}
        sample = gate.Sample(waiters=waiters, occupants=occupants, readings=readings)
        outcome = gate.step(self.gate, sample, now)
        self.gate = outcome.gate
        for replica, told in outcome.told:
            self.daemon.handle(str(replica), told)
        self.pause_s = FIRST_PAUSE_S if outcome.told else min(LAST_PAUSE_S, self.pause_s * 1.5)
        self.arm(self.pause_s)
