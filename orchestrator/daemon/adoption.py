"""What a new daemon does with what it finds.

Everything on disk was written before it was done, so each file says what may have happened and the
processes say what has. Lives whose shim is dead are ended first: nobody looks after their trees.
Then each unit gets its state and the events that its old daemon would have got. What belongs to no
topology that is up is ended, too; nothing that runs stays without an owner.
"""

import asyncio

import msgspec

from orchestrator.core.adopt import Ended, Found, Nothing, Saved, adopt, decode
from orchestrator.daemon.deployment import Deployment, Kept
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.launcher import Launcher, facts_of
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.daemon.verbs import RefusedError, read
from orchestrator.host import procfs
from orchestrator.host.orphans import end_leftovers
from orchestrator.host.reaper import Reaper
from orchestrator.host.records import ShimEvent, ShimLost, TreeEmpty
from orchestrator.host.rundir import FoundLife, RunDir
from orchestrator.host.shim_link import ShimLink
from orchestrator.wire.ids import LifeId

STRAY_S = 15.0
"""How long a stray tree may take to die before the daemon goes on without having seen it."""


class Adoption:
    """One look at the run directory, and what follows from it."""

    def __init__(
        self,
        run_dir: RunDir,
        deployments: Deployments,
        supervisor: Supervisor,
        launcher: Launcher,
        reaper: Reaper,
    ) -> None:
        self._run_dir = run_dir
        self._deployments = deployments
        self._supervisor = supervisor
        self._launcher = launcher
        self._reaper = reaper
        self._boot = procfs.boot_id()

    async def run(self) -> list[str]:
        """Adopt everything; returns a sentence for each thing that couldn't be."""
        self._run_dir.remove_rubble()
        lives = {life.life: life for life in self._run_dir.scan()}
        ended = await self._end_lost(list(lives.values()))
        troubles = [self._adopt_topology(kept, lives, ended) for kept in self._deployments.kept()]
        await self._end_strays([life for life in lives.values() if life.alive])
        for life in lives.values():
            self._run_dir.remove_life(life.directory)
        return [trouble for trouble in troubles if trouble]

    async def _end_lost(self, lives: list[FoundLife]) -> dict[LifeId, TreeEmpty]:
        """End the trees whose shim is dead; exit records by life, the found ones included."""
        lost = [life for life in lives if not life.alive and life.exit is None]
        records = await end_leftovers([life.record for life in lost], self._reaper)
        ended = {life.life: life.exit for life in lives if life.exit is not None}
        return ended | {life.life: record for life, record in zip(lost, records, strict=True)}

    def _adopt_topology(
        self, kept: Kept, lives: dict[LifeId, FoundLife], ended: dict[LifeId, TreeEmpty]
    ) -> str:
        try:
            topology, plan = read(kept)
        except RefusedError as refused:
            return f"{kept.file} is no longer understood, so its workers are ended: {refused}"
        found = Deployment(kept, topology, plan)
        units = self._deployments.adopt(found)
        begun = False
        for unit in units:
            begun = self._adopt_unit(unit, lives, ended) or begun
        if kept.going_down:
            self._deployments.begin_down(found, at_once=False)
        elif not begun:
            self._deployments.start_all(found.name)
        self._supervisor.tell_dependants(found.name)
        self._deployments.publish(found)
        return ""

    def _adopt_unit(
        self, unit: Unit, lives: dict[LifeId, FoundLife], ended: dict[LifeId, TreeEmpty]
    ) -> bool:
        """Give a unit its state and its events; False when it had none yet."""
        saved = self._saved(unit)
        if saved is None:
            return False
        unit.state = saved.state
        found: list[Found] = []
        if saved.boot == self._boot:
            found = [
                self._found(unit, unit.life(member), lives, ended)
                for member in range(len(saved.state.members))
            ]
        unit.state, events = adopt(saved, self._boot, found)
        for event in events:
            self._supervisor.post(unit.id, event)
        return True

    def _found(
        self,
        unit: Unit,
        life: LifeId,
        lives: dict[LifeId, FoundLife],
        ended: dict[LifeId, TreeEmpty],
    ) -> Found:
        here = lives.get(life)
        if here is None:
            return Nothing()
        if life in ended:
            return Ended(facts_of(ended[life], unit, life))
        del lives[life]  # it has an owner again
        return self._launcher.adopt(unit, life, here.directory)

    def _saved(self, unit: Unit) -> Saved | None:
        try:
            return decode(self._run_dir.replica(unit.id).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None  # never started, or written by another version: it starts anew

    async def _end_strays(self, lives: list[FoundLife]) -> None:
        """Kill living trees that belong to nothing that is up."""
        loop = asyncio.get_running_loop()
        endings = []
        for life in lives:
            done: asyncio.Future[None] = loop.create_future()

            def heard(event: ShimEvent, done: "asyncio.Future[None]" = done) -> None:
                if isinstance(event, TreeEmpty | ShimLost) and not done.done():
                    done.set_result(None)

            ShimLink.connect(life.directory, heard).kill()
            endings.append(done)
        if endings:
            await asyncio.wait(endings, timeout=STRAY_S)
