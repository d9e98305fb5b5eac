"""All topologies that are up: their routing tables, and their orderly end.

A stop goes level by level: who depends on others stops first, and the next level is asked only
when the one before is gone. Nothing waits here; each change of a unit asks "what follows from
this?" anew, so a daemon that was restarted in the middle of a stop goes on where the old one was.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
from msgspec import structs

from orchestrator.core import events, fleet
from orchestrator.core.affinity import cpus_of
from orchestrator.core.gpu_table import Holding
from orchestrator.core.state import RESTING, Phase, State, Want
from orchestrator.daemon import deployment, routing, snapshot
from orchestrator.daemon.births import lineage
from orchestrator.daemon.deployment import Deployment, Kept, StopOrder
from orchestrator.daemon.publisher import Publisher
from orchestrator.daemon.rollouts import Rollouts
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.host.fault_points import reached
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.host.whole_file import bring_up_to_date, write_whole
from orchestrator.topology.schema import Topology
from orchestrator.wire.ids import LifeId, ReplicaId
from orchestrator.wire.snapshot import TopologyStatus

HOLD_S = 10.0


class Deployments:
    """Topologies by name.

    `on_gone` is called when one is completely down, `on_forgotten` with each replica that is gone.
    """

    def __init__(
        self,
        run_dir: RunDir,
        state_dir: StateDir,
        supervisor: Supervisor,
        publisher: Publisher,
        on_gone: Callable[[], None],
        *,
        on_forgotten: Callable[[ReplicaId], None] = lambda _: None,
    ) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._supervisor = supervisor
        self._publisher = publisher
        self._on_gone = on_gone
        self._on_forgotten = on_forgotten
        self.by_name: dict[str, Deployment] = {}
        self.rollouts = Rollouts(supervisor, publisher, self)

    def units(self, name: str) -> list[Unit]:
        """The units of one topology, in the order of their ids."""
        units = self._supervisor.units
        return [units[replica] for replica in sorted(units) if replica.topology == name]

    def deploy(self, found: Deployment) -> None:
        """Take care of a topology from now on, and write it down for the next daemon."""
        found.kept = structs.replace(found.kept, schema=deployment.SCHEMA, plan=found.plan)
        self.write(found)
        reached("deployments.written")
        self.adopt(found)

    def adopt(self, found: Deployment) -> list[Unit]:
        """Take care of a topology that is written down already; returns its new units."""
        assert found.name not in self.by_name, found.name
        self.by_name[found.name] = found
        units = deployment.make_units(found, self.log_of)
        self._supervisor.add(units)
        return units

    def holdings(self, besides: str) -> list[Holding]:
        """What the workers of all other topologies have of this machine, now or after a change."""
        found: dict[tuple[str, str], Holding] = {}
        for unit in self._supervisor.units.values():
            if unit.id.topology == besides:
                continue
            for worker in (*unit.spec.members, *unit.coming.members):
                for uuid in worker.gpu_uuids:
                    holding = Holding(who=worker.id, uuid=uuid, share=worker.gpu_share)
                    found[worker.id, uuid] = holding
                if cpus := cpus_of(worker.cpu_env):
                    found[worker.id, ""] = Holding(who=worker.id, cpus=cpus)
        return list(found.values())

    def lineages(self) -> set[tuple[str, str]]:
        """The zygotes that anything of what is up comes from, or is to come from."""
        workers = [worker for found in self.by_name.values() for worker in found.plan.workers]
        for unit in self._supervisor.units.values():
            workers += (*unit.spec.members, *unit.coming.members)
        return {lineage(worker) for worker in workers}

    def statuses(self) -> list[TopologyStatus]:
        """What `status` tells of each topology."""
        now = time.monotonic()
        return [
            snapshot.topology(found, self.units(name), now)
            for name, found in sorted(self.by_name.items())
        ]

    def log_of(self, worker: LifeId) -> str:
        """Where a worker's log goes."""
        return str(self._state_dir.log(worker))

    def write(self, found: Deployment) -> None:
        """Put a topology's file on disk for the next daemon. OSError when that can't be."""
        path = self._run_dir.topology(found.name)
        write_atomically(path, deployment.encode(found.kept))

    def rewrite(self, found: Deployment, kept: Kept, topology: Topology) -> None:
        """Remember another file that means the same. OSError when it can't be saved."""
        before = found.kept
        found.kept = structs.replace(kept, numbers=before.numbers)
        try:
            self.write(found)
        except OSError:
            found.kept = before
            raise
        found.topology = topology

    def kept(self) -> dict[Path, Kept | None]:
        """What the daemon before had up, by its file; None: it can't be read."""
        return {path: _kept(path) for path in sorted(self._run_dir.topologies.glob("*.json"))}

    def start_all(self, name: str, concerned: frozenset[ReplicaId] | None = None) -> None:
        """Ask every unit to start that is at rest, or on its way there because it was stopped.

        Not those that a rollout sees to, nor a oneshot that has done its work. `concerned`: by a
        change of the file, None if it is the same; who has failed, and isn't, is left alone.
        """
        kept = self.by_name[name].kept
        for unit in self.units(name):
            if str(unit.id) in kept.pins or str(unit.id) in kept.coming:
                continue
            phase, is_concerned = unit.state.phase, unit.id in (concerned or ())
            done = phase is Phase.COMPLETED and unit.policy.oneshot
            given_up = phase is Phase.FAILED and concerned is not None
            if (done or given_up) and not is_concerned:
                continue
            self.spare(unit)  # or a stop that this overtakes would be waited for, for ever
            if phase in RESTING or unit.state.want is Want.DOWN:
                self._supervisor.request(unit, events.StartRequested)

    def begin_down(self, found: Deployment, *, at_once: bool) -> None:
        """Start, or hasten, the orderly end."""
        if not found.going_down:
            self._remember(found, structs.replace(found.kept, going_down=True, stopping={}))
            reached("deployments.down-written")
            self._publisher.event(found.name, "going-down", detail={"now": str(at_once).lower()})
        found.at_once = found.at_once or at_once
        found.stopping.clear()
        self._descend(found)
        if at_once:
            for unit in self.units(found.name):
                self._stop(unit, at_once=True)

    def _remember(self, found: Deployment, kept: Kept) -> None:
        """Tell the next daemon; a full disk stops no stop, only that one won't know."""
        found.kept = kept
        try:
            self.write(found)
        except OSError as error:
            self._publisher.event(found.name, "not-saved", reason=str(error))

    def _stop(self, unit: Unit, *, at_once: bool) -> None:
        self._supervisor.request(unit, lambda intent: events.StopRequested(intent, at_once))

    def begin_stop(self, units: list[Unit], drain_s: float | None) -> None:
        """Stop parts of a topology, dependants first; each level when the one before is gone."""
        found = self.by_name[units[0].id.topology]
        for unit in units:
            found.stopping[unit.id] = drain_s
            found.asked.discard(unit.id)
        everything = deployment.stop_needs(self.units(found.name))
        if len(fleet.stop_levels(list(found.stopping), everything)) > 1:
            orders = {replica: found.kept.stopping.get(str(replica)) for replica in found.stopping}
            orders |= {
                unit.id: StopOrder(intent=self._supervisor.newest_intent(unit), drain_s=drain_s)
                for unit in units
            }
            known = {str(replica): order for replica, order in orders.items() if order is not None}
            self._remember(found, structs.replace(found.kept, stopping=known))
            reached("deployments.stop-written")
        self._go_on_stopping(found)

    def recall_stops(self, found: Deployment) -> None:
        """See who still is to stop by the order of an earlier daemon; ask nobody yet."""
        for name, order in found.kept.stopping.items():
            unit = self._supervisor.units.get(ReplicaId.parse(name))
            if unit is None or (unit.state.want is Want.UP and unit.state.intent > order.intent):
                continue  # somebody wanted it to be up after all
            found.stopping[unit.id] = order.drain_s
            if unit.state.want is Want.DOWN:
                found.asked.add(unit.id)

    def resume_stops(self, found: Deployment) -> None:
        """Ask those whose turn it is now."""
        if found.kept.stopping:
            self._go_on_stopping(found)

    def spare(self, unit: Unit) -> None:
        """Somebody wants it to be up after all."""
        self.by_name[unit.id.topology].stopping.pop(unit.id, None)

    def _go_on_stopping(self, found: Deployment) -> None:
        by_id = {unit.id: unit for unit in self.units(found.name)}
        for replica in list(found.stopping):
            unit = by_id.get(replica)
            if unit is None or (unit.state.phase in RESTING and unit.state.want is Want.DOWN):
                del found.stopping[replica]
                found.asked.discard(replica)
        levels = fleet.stop_levels(
            list(found.stopping), deployment.stop_needs(list(by_id.values()))
        )
        for replica in levels[0] if levels else ():
            if replica not in found.asked:
                found.asked.add(replica)
                ask = partial(events.StopRequested, drain_s=found.stopping[replica])
                self._supervisor.request(by_id[replica], ask)
        if not found.stopping and found.kept.stopping:
            self._remember(found, structs.replace(found.kept, stopping={}))

    def _descend(self, found: Deployment) -> None:
        """Ask the first level that isn't at rest to stop; nobody left: it is gone."""
        units = self.units(found.name)
        by_id = {unit.id: unit for unit in units}
        for level in fleet.stop_levels(list(by_id), deployment.stop_needs(units)):
            here = [by_id[replica] for replica in level]
            for unit in here:
                if unit.state.want is Want.UP and unit.id not in found.asked:
                    found.asked.add(unit.id)
                    self._stop(unit, at_once=found.at_once)
            # A failed or completed one is at rest, and still has to hear that it is wanted no more.
            found.leaving = {unit.id for unit in here if not _is_off(unit)}
            if found.leaving:
                return
        self._finish(found)

    def _finish(self, found: Deployment) -> None:
        for unit in self.units(found.name):
            self._supervisor.remove(unit.id)
            self.forget(unit.id)
            reached("deployments.state-removed")
        self._run_dir.topology(found.name).unlink(missing_ok=True)
        reached("deployments.forgotten")
        del self.by_name[found.name]
        self._publisher.event(found.name, "gone")
        self._on_gone()

    def forget(self, replica: ReplicaId) -> None:
        """Drop what is kept of a replica that is gone: its state on disk, its workers' ports."""
        self._run_dir.replica(replica).unlink(missing_ok=True)
        self._on_forgotten(replica)

    def changed(self, unit: Unit, before: State) -> None:
        """Publish the routing table if it is another now: before anything else is done."""
        found = self.by_name.get(unit.id.topology)
        if found is not None and routing.concerns(unit, before):
            self.publish(found)

    def settled(self, unit: Unit) -> None:
        """See what follows for a topology that is being changed, or taken down."""
        found = self.by_name.get(unit.id.topology)
        if found is None:
            return
        if not found.going_down:
            if found.stopping:
                self._go_on_stopping(found)
            self.rollouts.advance(found)
        elif _is_off(unit) and unit.id in found.leaving:
            found.leaving.discard(unit.id)
            if not found.leaving:
                self._descend(found)

    def publish_when_heard(self, found: Deployment) -> None:
        """Publish an adopted topology's table once all its workers have said hello again.

        A table without those that haven't would take workers away that serve. One that is dead
        loses its lease and isn't waited for; nobody is waited for longer than HOLD_S.
        """
        found.holding = True
        asyncio.get_running_loop().call_later(HOLD_S, self._hold_no_longer, found)
        self.publish(found)

    def _hold_no_longer(self, found: Deployment) -> None:
        if found.holding and self.by_name.get(found.name) is found:
            found.holding = False
            self.publish(found)

    def publish(self, found: Deployment, *, changed: bool = False) -> None:
        """Publish the routing table of one topology, with a new version.

        `changed`: the frontends' present table is wrong now, also where it was the last daemon's.
        """
        units = self.units(found.name)
        if found.holding and not routing.is_complete(units):
            # The frontends obey the last daemon's table, which is right; or else nobody may be
            # told that they obey the present one.
            if changed:
                found.routes_version = routing.next_version(found.routes_version)
            return
        found.holding = False
        found.routes_version = routing.next_version(found.routes_version)
        now = asyncio.get_running_loop().time()
        table = routing.table(found.name, found.engine, units, found.routes_version, now)
        self._publisher.routes(table)

    def greeted(self, unit: Unit) -> None:
        """A worker introduced itself: a frontend needs the table, a route may be complete now."""
        found = self.by_name.get(unit.id.topology)
        if found is not None and (unit.spec.kind == "frontend" or unit.routable):
            self.publish(found)

    def applied(self, unit: Unit) -> None:
        """A frontend says which table it has applied; tell those who wait for an answer."""
        found = self.by_name.get(unit.id.topology)
        if found is None or unit.spec.kind != "frontend":
            return
        if snapshot.answering(self.units(found.name), found.routes_version):
            self._publisher.event(found.name, "answering")
        self.rollouts.advance(found)


def _is_off(unit: Unit) -> bool:
    """Nothing of it is left, nor wanted."""
    return unit.state.phase in RESTING and unit.state.want is Want.DOWN


def _kept(path: Path) -> Kept | None:
    try:
        return deployment.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None  # torn by a power loss, or written by another version


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or the next daemon, sees the old or the new, never half."""
    write_whole(str(path), data, lambda: reached("disk.drafted"))


def write_over(path: Path, data: bytes) -> None:
    """The same for a file that only the next daemon reads: it costs a tenth."""
    bring_up_to_date(str(path), data, lambda: reached("disk.drafted"))
