"""What a new daemon does with what it finds.

Everything on disk was written before it was done, so each file says what may have happened and the
processes say what has. Trees whose shim is dead are ended first: nobody looks after them. What
lives and is nobody's present life is ended, too: nothing that runs stays without an owner, and
nothing new may start beside it. Then each unit gets its state and the events that its old daemon
would have got; one that has no state yet was about to be started, and is.
"""

import asyncio

import msgspec
from msgspec.structs import replace

from orchestrator.core.adopt import Ended, Found, Nothing, Saved, adopt, decode
from orchestrator.core.events import StartRequested
from orchestrator.core.state import Phase
from orchestrator.daemon.deployment import Deployment
from orchestrator.daemon.deployments import Deployments
from orchestrator.daemon.launcher import Launcher, facts_of
from orchestrator.daemon.reading import RefusedError, adopted
from orchestrator.daemon.supervisor import Supervisor
from orchestrator.daemon.unit import Unit
from orchestrator.host import cgroup, procfs
from orchestrator.host.fault_points import reached
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
        cgroup.sweep()
        checks = await self._end_checks()
        lives = {life.life: life for life in self._run_dir.scan()}
        reached("adoption.scanned")
        ended = await self._end_lost(list(lives.values()))
        reached("adoption.lost-trees-ended")
        up, troubles = self._read_all()
        reached("adoption.files-read")
        units = [unit for found in up for unit in self._deployments.adopt(found)]
        saved = [(unit, self._saved(unit)) for unit in units]
        ours = {life for unit, one in saved if one for life in self._claimed(unit, one)}
        strays = [life for life in lives.values() if life.alive and life.life not in ours]
        stubborn = await self._end_strays(strays)
        reached("adoption.strays-ended")
        for unit, one in saved:
            if one is not None:
                self._restore(unit, one, lives, ended)
                reached("adoption.unit-restored")
            else:
                numbers = [life.incarnation for life in lives if life.of == unit.id]
                number = self._deployments.by_name[unit.id.topology].kept.numbers.get(str(unit.id))
                unit.state = replace(unit.state, incarnation=max([*numbers, number or 0]))
        for found in up:
            self._deployments.recall_stops(found)
        reached("adoption.restored")
        # All events are taken before anything follows from them. Only then is it known for good
        # how the dead have ended: another daemon may have to read it again.
        self._supervisor.catch_up()
        for life in lives.values():
            if life.life not in self._launcher.lives and life not in stubborn:
                self._run_dir.remove_life(life.directory)
        self._launcher.release_ports(self._supervisor.units.values())
        reached("adoption.lives-removed")
        self._go_on(up, [unit for unit, one in saved if one is None])
        return troubles + [
            f"{life.life} runs, is nobody's, and won't die" for life in stubborn + checks
        ]

    async def _end_checks(self) -> list[FoundLife]:
        """End the check commands that nobody waits for any more; returns those that won't."""
        found = self._run_dir.scan_probes()
        lost = [life.record for life in found if not life.alive and life.exit is None]
        await end_leftovers(lost, self._reaper)
        stubborn = await self._end_strays([life for life in found if life.alive])
        for directory in list(self._run_dir.probes.iterdir()):
            if directory not in {life.directory for life in stubborn}:
                self._run_dir.remove_probe(directory)
        return stubborn

    def _read_all(self) -> tuple[list[Deployment], list[str]]:
        """What was up, and a sentence for each file that makes no sense any more."""
        found, troubles = [], []
        for path, kept in self._deployments.kept().items():
            trouble = "it can't be read"
            if kept is not None:
                try:
                    found.append(adopted(kept))
                    continue
                except RefusedError as refused:
                    trouble = str(refused)
            path.unlink()
            troubles.append(f"{path.name} makes no sense, so its workers are ended: {trouble}")
        return found, troubles

    async def _end_lost(self, lives: list[FoundLife]) -> dict[LifeId, TreeEmpty]:
        """End the trees whose shim is dead; exit records by life, the found ones included."""
        lost = [life for life in lives if not life.alive and life.exit is None]
        records = await end_leftovers([life.record for life in lost], self._reaper)
        ended = {life.life: life.exit for life in lives if life.exit is not None}
        return ended | {life.life: record for life, record in zip(lost, records, strict=True)}

    def _saved(self, unit: Unit) -> Saved | None:
        try:
            saved = decode(self._run_dir.replica(unit.id).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None  # about to be started, or not to be read any more: it starts anew
        found = self._deployments.by_name[unit.id.topology]
        self._deployments.rollouts.take_up(found, unit, saved.state)
        fits = len(saved.state.members) in {0, len(unit.spec.members)}
        return saved if fits else None

    def _claimed(self, unit: Unit, saved: Saved) -> list[LifeId]:
        """The lives that a state speaks of."""
        if saved.boot != self._boot:
            return []
        state = saved.state
        return [unit.id.life(member, state.incarnation) for member in range(len(state.members))]

    def _restore(
        self,
        unit: Unit,
        saved: Saved,
        lives: dict[LifeId, FoundLife],
        ended: dict[LifeId, TreeEmpty],
    ) -> None:
        """Give a unit its state and the events that it has missed."""
        unit.state = saved.state
        found = [
            self._found(unit, life, lives.get(life), ended) for life in self._claimed(unit, saved)
        ]
        unit.state, events = adopt(saved, self._boot, found)
        for event in events:
            self._supervisor.post(unit.id, event)

    def _found(
        self,
        unit: Unit,
        life: LifeId,
        here: FoundLife | None,
        ended: dict[LifeId, TreeEmpty],
    ) -> Found:
        if here is None:
            return Nothing()
        if life in ended:
            return Ended(facts_of(ended[life], unit, life))
        return self._launcher.adopt(unit, life, here.directory)

    def _go_on(self, up: list[Deployment], unbegun: list[Unit]) -> None:
        """Go on where the old one stopped."""
        for found in up:
            if found.going_down:
                self._deployments.begin_down(found, at_once=False)
            else:
                self._deployments.publish_when_heard(found)
        for unit in unbegun:
            kept = next(each.kept for each in up if each.name == unit.id.topology)
            waits = str(unit.id) in kept.coming  # for its turn
            there = unit.id in self._supervisor.units
            if there and unit.state.phase is Phase.STOPPED and not waits:
                self._supervisor.request(unit, StartRequested)
        for found in up:
            self._deployments.rollouts.resume(found)
            self._deployments.resume_stops(found)

    async def _end_strays(self, lives: list[FoundLife]) -> list[FoundLife]:
        """Kill living trees that are nobody's; returns those that were there to the last."""
        loop = asyncio.get_running_loop()
        endings: dict[asyncio.Future[None], FoundLife] = {}
        for life in lives:
            done: asyncio.Future[None] = loop.create_future()

            def heard(event: ShimEvent, done: asyncio.Future[None] = done) -> None:
                if isinstance(event, TreeEmpty | ShimLost) and not done.done():
                    done.set_result(None)

            ShimLink.connect(life.directory, heard).kill()
            endings[done] = life
        if not endings:
            return []
        _, pending = await asyncio.wait(endings, timeout=STRAY_S)
        return [endings[done] for done in pending]
