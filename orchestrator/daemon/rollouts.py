"""Brings what runs to what was asked for, while it serves.

`core.difference` says what a changed file changes, `core.rollout` what may be done next; here it is
done and written down. The order makes it safe to die anywhere: first the topology's file on disk
says what each replica runs and what it is to run, in one atomic write, and only then is anything
asked of a replica. The next daemon reads it and goes on.

A replica that has to start anew keeps its old specification until its new life begins: should it
crash before its turn, it comes back as what it was.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import structs

from orchestrator.core import events, rollout
from orchestrator.core.rollout import Move, Part, Task
from orchestrator.core.state import Phase, State, Want
from orchestrator.daemon import deployment, proposals
from orchestrator.daemon.deployment import Deployment, Kept, Pin
from orchestrator.daemon.proposals import Proposal
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.snapshot import applied_version
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit, UnitSpec
from orchestrator.wire.ids import LifeId, ReplicaId


class Home(Protocol):
    """What the rollouts of all topologies have in common."""

    def units(self, name: str) -> list[Unit]:
        """The units of a topology."""

    def log_of(self, worker: LifeId) -> str:
        """Where a worker's log goes."""

    def write(self, found: Deployment) -> None:
        """Put a topology's file on disk. OSError when that can't be."""

    def forget(self, replica: ReplicaId) -> None:
        """Drop what is on disk of a replica that is gone."""

    def publish(self, found: Deployment, *, changed: bool = False) -> None:
        """Send the routing table. `changed`: the one that frontends have is wrong now."""


class Rollouts:
    """Applies proposals, and goes on with them after each change of a unit."""

    def __init__(self, supervisor: Supervisor, publisher: Publisher, home: Home) -> None:
        self._supervisor = supervisor
        self._publisher = publisher
        self._home = home

    # ---- beginning ---------------------------------------------------------------------------

    def apply(self, found: Deployment, proposal: Proposal, again: Iterable[ReplicaId] = ()) -> None:
        """Make a proposal what is wanted, and begin. OSError, and nothing touched, on a full disk.

        `again`: replicas that are renewed although nothing of them has changed.
        """
        units = {unit.id: unit for unit in self._home.units(found.name)}
        before = (found.kept, found.topology, found.plan, found.olds)
        kinds: dict[ReplicaId, str] = {change.replica: change.kind for change in proposal.changes}
        kinds |= {each: "restart" for each in again if each in units and each in proposal.specs}
        if found.kept.halted:  # what failed gets another try, and may halt it again
            kinds |= {
                each: "restart"
                for each, unit in units.items()
                if each in proposal.specs and unit.state.phase is Phase.FAILED
                and str(each) in found.kept.fresh
            }  # fmt: skip
        parked = [
            name
            for name, pin in found.kept.pins.items()
            if pin.parked and not units[ReplicaId.parse(name)].state.members
        ]
        # Told to leave, and wanted again before it was gone: nobody else would ask it to start.
        left = (ReplicaId.parse(name) for name in found.kept.pins)
        back = [str(each) for each in left if each not in found.plan.replicas]
        pins = self._pins(found, units, kinds)
        key = _key(found.kept)
        sources = found.kept.sources | {key: found.kept.source}
        used = {pin.source for pin in pins.values()}
        coming = [str(each) for each, kind in kinds.items() if kind == "add"]
        coming += [
            each
            for each in (*found.kept.coming, *parked, *back)
            if ReplicaId.parse(each) in proposal.specs
        ]
        spares = proposals.spares(
            proposal, [units[each] for each in units if str(each) in pins], units
        )
        olds = found.olds | {key: found.topology}
        found.olds = {k: v for k, v in olds.items() if k in used}
        found.topology, found.plan = proposal.topology, proposal.plan
        found.kept = structs.replace(
            proposal.kept,
            pins=pins,
            sources={k: v for k, v in sources.items() if k in used},
            coming=tuple(dict.fromkeys([*coming, *(str(each.replica) for each in spares)])),
            spares=spares,
            fresh=tuple(name for name, pin in pins.items() if pin.told_at is not None),
            halted="",
            numbers=found.kept.numbers,
        )
        try:
            self._home.write(found)
        except OSError:
            found.kept, found.topology, found.plan, found.olds = before
            raise
        self._publisher.event(found.name, "changing", detail=proposals.counts(kinds))
        self._take_over(found, proposal, units)
        self._home.publish(found, changed=True)
        self.advance(found)

    def _pins(
        self, found: Deployment, units: dict[ReplicaId, Unit], kinds: dict[ReplicaId, str]
    ) -> dict[str, Pin]:
        """Pin what is to be renewed, or to leave, to what it is now."""
        pins: dict[str, Pin] = {}
        key = _key(found.kept)
        for replica, unit in units.items():
            old = found.kept.pins.get(str(replica))
            leaves = kinds[replica] == "remove"
            # Who was told to have another life, and is to leave now, hasn't heard of that yet.
            heard = replica not in found.plan.replicas if leaves else unit.next is not None
            told = old is not None and heard
            if kinds[replica] in {"restart", "remove"} or told:
                rests = not unit.state.members and unit.state.want is Want.DOWN
                if rests and not leaves:
                    continue  # its next life, whenever that is, will be the new one
                pins[str(replica)] = Pin(
                    source=old.source if old is not None else key,
                    members=unit.spec.members,
                    told_at=old.told_at if old is not None and told else None,
                )
        return pins

    def _take_over(
        self, found: Deployment, proposal: Proposal, units: dict[ReplicaId, Unit]
    ) -> None:
        """Give each unit its new specification, if it needs no new life for it; add new ones."""
        for replica, unit in units.items():
            new = proposal.specs.get(replica)
            if new is None:
                continue
            if unit.next is not None:
                self._supervisor.prepare(unit, new)
            elif str(replica) not in found.kept.pins:
                self._supervisor.respecify(unit, new)
        specs = dict(proposal.specs)
        file = found.kept.file
        for replica in {worker.replica for worker in found.kept.spares}:
            members = tuple(each for each in found.kept.spares if each.replica == replica)
            specs[replica] = deployment.spec(
                found.topology, found.plan, file, members, self._home.log_of
            )
        for replica, each in specs.items():
            if replica not in units:
                number = found.kept.numbers.get(str(replica), 0)
                self._supervisor.add([Unit(each, State(name=str(replica), incarnation=number))])

    def take_up(self, found: Deployment, unit: Unit, saved: State) -> None:
        """Let an adopted unit be what its saved life was started as, and know its next one."""
        pin = found.kept.pins.get(str(unit.id))
        new = self._specs(found).get(unit.id)
        if pin is None or pin.told_at is None or new is None:
            return
        if saved.incarnation > pin.told_at or not saved.members:
            self._supervisor.respecify(unit, new)
        else:
            unit.next = new

    def resume(self, found: Deployment) -> None:
        """Go on with what the daemon before had begun: what it had told may not have been heard."""
        if not found.rolling or found.going_down:
            return
        self._note_renewed(found)
        specs = self._specs(found)
        for name, pin in found.kept.pins.items():
            unit = self._supervisor.units[ReplicaId.parse(name)]
            new = specs.get(unit.id)
            if pin.told_at is None:
                continue
            if new is None:
                if unit.state.want is Want.UP:
                    self._supervisor.request(unit, events.StopRequested)
                continue
            if unit.state.want is Want.UP and not pin.parked:
                self._supervisor.request(unit, events.RestartRequested)
        self.advance(found)

    # ---- going on ----------------------------------------------------------------------------

    def advance(self, found: Deployment) -> None:
        """Do what may be done now."""
        if not found.rolling or found.going_down:
            return
        before = found.kept
        self._note_renewed(found)
        parts = self._parts(found)
        failed = rollout.failure(parts)
        if failed is not None and not found.kept.halted:
            self._halt(found, failed)
        decision = rollout.decide(
            parts, halted=bool(found.kept.halted), answering=self._answering(found)
        )
        orders = [self._order(found, move) for move in decision.moves]
        if decision.over:
            found.kept = structs.replace(found.kept, fresh=(), sources={})
            found.olds.clear()
            self._publisher.event(found.name, "rolled-out")
        if found.kept is not before:
            self._save(found)
        for order in orders:
            order()

    def _answering(self, found: Deployment) -> bool:
        """Whether every frontend that serves obeys the present routing table."""
        return all(
            applied_version(unit) >= found.routes_version
            for unit in self._home.units(found.name)
            if unit.spec.kind == "frontend" and unit.state.phase is Phase.READY
        )

    def _save(self, found: Deployment) -> None:
        try:
            self._home.write(found)
        except OSError as error:  # a full disk stops nothing; the next daemon may do a step twice
            self._publisher.event(found.name, "not-saved", reason=str(error))

    def _halt(self, found: Deployment, failed: Part) -> None:
        text = f"{failed.replica} failed with its new configuration: {failed.state.reason}"
        left = sum(1 for pin in found.kept.pins.values() if pin.told_at is None)
        if left:
            text += f" ({left} keep{'s' * (left == 1)} the old one)"
        found.kept = structs.replace(found.kept, halted=text)
        self._publisher.event(found.name, "rollout-halted", reason=text)

    def _note_renewed(self, found: Deployment) -> None:
        """Drop the pins of those whose new life has begun."""
        pins = {}
        planned = found.plan.replicas
        for name, pin in found.kept.pins.items():
            unit = self._supervisor.units[ReplicaId.parse(name)]
            state = unit.state
            rests = state.want is Want.DOWN and not state.members and not pin.parked
            begun = pin.told_at is not None and (state.incarnation > pin.told_at or rests)
            if unit.id not in planned or not begun:
                pins[name] = pin
        if len(pins) != len(found.kept.pins):
            found.kept = structs.replace(found.kept, pins=pins)

    def _parts(self, found: Deployment) -> list[Part]:
        kept, specs = found.kept, self._specs(found)
        spares = {worker.replica for worker in kept.spares}
        parts = []
        for unit in self._home.units(found.name):
            name, pin = str(unit.id), kept.pins.get(str(unit.id))
            wanted = specs.get(unit.id)
            if pin is not None:
                task = Task.RENEW if pin.told_at is None else Task.RENEWING
                task = Task.LEAVE if wanted is None else task
            else:
                task = Task.COME if name in kept.coming else Task.NONE
            parts.append(
                Part(
                    replica=unit.id,
                    state=unit.state,
                    task=task,
                    fresh=name in kept.fresh,
                    holds=_gpus(unit.spec, held=True),
                    wants=_gpus(wanted or unit.spec, held=False),
                    after=_after(unit, found),
                    needs=unit.spec.needs,
                    spare=unit.id in spares,
                    parked=pin is not None and pin.parked,
                    told=pin is not None and pin.told_at is not None,
                )
            )
        return parts

    def _specs(self, found: Deployment) -> dict[ReplicaId, UnitSpec]:
        return deployment.planned_specs(
            found.topology, found.plan, found.kept.file, self._home.log_of
        )

    def _order(self, found: Deployment, move: Move) -> Callable[[], None]:
        """Note a move in what is kept; what is returned does it, once that is on disk."""
        unit = self._supervisor.units[move.replica]
        name, kept = str(unit.id), found.kept
        pin = kept.pins.get(name)
        fresh = (*(each for each in kept.fresh if each != name), name)
        told = structs.replace(pin, told_at=unit.state.incarnation) if pin is not None else None
        match move.do:
            case "start":
                coming = tuple(each for each in kept.coming if each != name)
                pins = kept.pins
                if pin is not None:
                    pins = pins | {name: structs.replace(pin, parked=False)}
                found.kept = structs.replace(kept, coming=coming, fresh=fresh, pins=pins)
                return lambda: self._begin(found, unit, events.StartRequested)
            case "renew" | "park":
                assert told is not None, "only what is pinned is renewed"
                told = structs.replace(told, parked=move.do == "park")
                found.kept = structs.replace(kept, fresh=fresh, pins=kept.pins | {name: told})
                kind = events.StopRequested if move.do == "park" else events.RestartRequested
                return lambda: self._begin(found, unit, kind)
            case "stop":
                assert told is not None, "only what is pinned leaves"
                found.kept = structs.replace(kept, pins=kept.pins | {name: told})
                return lambda: self._supervisor.request(unit, events.StopRequested)
            case "swap":
                pins = {each: one for each, one in kept.pins.items() if each != name}
                found.kept = structs.replace(kept, pins=pins)
                new = self._specs(found)[unit.id]
                return lambda: self._supervisor.respecify(unit, new)
            case "retire":
                pin = Pin(source=_key(kept), members=unit.spec.members)
                found.olds[pin.source] = found.topology
                found.kept = structs.replace(
                    kept,
                    pins=kept.pins | {name: pin},
                    sources=kept.sources | {pin.source: kept.source},
                    coming=tuple(each for each in kept.coming if each != name),
                    spares=tuple(each for each in kept.spares if each.replica != unit.id),
                    fresh=tuple(each for each in kept.fresh if each != name),
                )
                return lambda: self._supervisor.request(unit, events.StopRequested)
            case "remove":
                pins = {each: one for each, one in kept.pins.items() if each != name}
                numbers = kept.numbers | {name: unit.state.incarnation}
                found.kept = structs.replace(kept, pins=pins, numbers=numbers)
                return lambda: self._remove(found, unit)

    def _begin(self, found: Deployment, unit: Unit, kind: Callable[[int], events.Event]) -> None:
        new = self._specs(found).get(unit.id)
        if new is not None and str(unit.id) in found.kept.pins:
            self._supervisor.prepare(unit, new)
        self._supervisor.request(unit, kind)

    def _remove(self, found: Deployment, unit: Unit) -> None:
        self._supervisor.remove(unit.id)
        self._home.forget(unit.id)
        self._home.publish(found)
        self.advance(found)


def _key(kept: Kept) -> str:
    """The key of a topology's present source; the same for the same content."""
    for key, source in kept.sources.items():
        if source == kept.source:
            return key
    return str(max((int(key) for key in kept.sources), default=0) + 1)


def _gpus(spec: UnitSpec, *, held: bool) -> frozenset[str]:
    """GPUs that nobody else may have at the same time; a shared one only excludes who wants all."""
    found = set()
    for worker in spec.members:
        shared = worker.gpu_share != 1.0
        for uuid in worker.gpu_uuids:
            found |= {f"{uuid} in part"} if shared and held else {uuid}
            if not shared:
                found.add(f"{uuid} in part")
    return frozenset(found)


def _after(unit: Unit, found: Deployment) -> frozenset[str]:
    """Roles that are renewed first: those it depends on; for a frontend, all engines."""
    if unit.spec.kind == "frontend":
        return frozenset(found.topology.roles)
    return frozenset(unit.spec.members[0].depends_on)
