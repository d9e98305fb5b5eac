"""Fleets that are scaled while everything goes wrong: the daemon's rollouts, made-up processes.

A seed is a history. Somebody scales a role up and down, restarts it one by one, applies the file
again and changes his mind; replicas crash, can't be born and take their time to end; the daemon is
killed and the next one takes over. Then the faults stop.

The oracle counts processes, which it gave birth to and buried itself, and never looks at what the
daemon believes. Of a role there are never more replicas with processes than the largest number
that was wanted since all was well, and never two lives of one replica. In peace there are exactly
as many as were wanted last, with the lowest numbers.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

from orchestrator.core import actions
from orchestrator.core import events as e
from orchestrator.core.adopt import Alive, Nothing, Saved
from orchestrator.core.adopt import encode as encode_saved
from orchestrator.core.inventory import Inventory
from orchestrator.core.state import LIVE, Phase
from orchestrator.daemon.adoption import Adoption
from orchestrator.daemon.deployments import write_atomically
from orchestrator.daemon.verbs import Verbs
from orchestrator.host import procfs
from orchestrator.wire.messages import Verb
from tests.unit.daemon_stage import Stage

IN_FILE = 2
FILE = f"""
name = "s"
model = "m"
restart = {{ attempts = 1000, intensity = 100000, jitter = 0 }}
[roles.worker]
engine = "sim"
replicas = {IN_FILE}
"""
DEEDS = 60
PEACE = 400
"""Rounds within which all must be well once the faults have stopped."""


class Taking(Adoption):
    """Takes over, and asks the run who lives."""

    alive: frozenset[str] = frozenset()

    def _found(self, _unit, life, _here, _ended):
        return Alive(pid=7) if str(life) in self.alive else Nothing()


class Yard(Stage):
    """A daemon whose states are on disk, and whose processes are the run's."""

    def __init__(self, folder: Path, run) -> None:
        self.run = run
        super().__init__(folder)
        self.verbs = Verbs(
            self.supervisor, self.deployments, dict, lambda *_: None, self.machine,
            preflight=self.preflight,
        )  # fmt: skip

    async def machine(self) -> Inventory:
        return Inventory()

    async def preflight(self, *_) -> list[str]:
        return []

    def save(self, replica, state) -> None:
        saved = Saved(procfs.boot_id(), state)
        write_atomically(self.run_dir.replica(replica), encode_saved(saved))

    def perform(self, unit, action) -> None:
        if isinstance(action, actions.Spawn):
            self.run.ordered(unit)

    def ask(self, name: str, **args) -> None:
        reply = self.loop.run_until_complete(self.verbs.answer(Verb(name, args)))
        assert reply is not None
        self.turn()

    def release_ports(self, _units) -> None:
        """Nobody has any."""

    @property
    def lives(self) -> dict:
        return {}


class Run:
    """One seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = Random(seed)
        self.folder = folder
        self.file = folder / "t.toml"
        self.file.write_text(FILE)
        self.live: dict[str, int] = {}
        self.wanted = self.most = IN_FILE
        self.yard = Yard(folder, self)
        self.yard.ask("up", file=str(self.file), engine="sim")

    # -- the oracle -----------------------------------------------------------------------------

    def ordered(self, unit) -> None:
        """A birth: at this moment no process of an earlier life may be there, nor too many."""
        name, number = str(unit.id), unit.state.incarnation
        there = self.live.get(name)
        assert there in {None, number}, f"{name}#{number} is born while #{there} lives"
        self.live[name] = number
        workers = [each for each in self.live if each.startswith("s/worker")]
        assert len(workers) <= self.most, f"{sorted(workers)} live, {self.most} were wanted at most"

    def is_well(self) -> bool:
        ready = {
            str(unit.id): unit.state.incarnation
            for unit in self.yard.supervisor.units.values()
            if unit.state.phase is Phase.READY
        }
        names = {"s/frontend-0", *(f"s/worker-{number}" for number in range(self.wanted))}
        return ready == self.live and ready.keys() == names == self.units()

    def units(self) -> set[str]:
        return {str(name) for name in self.yard.supervisor.units}

    # -- what happens ---------------------------------------------------------------------------

    def scale(self, number: int) -> None:
        self.wanted, self.most = number, max(self.most, number)
        self.yard.ask("scale", replicas={"worker": number})

    def deed(self) -> None:
        """Somebody wants something, or something breaks."""
        rng, luck = self.rng, self.rng.random()
        if luck < 0.30:
            self.scale(rng.randint(1, 5))
        elif luck < 0.36:
            self.wanted, self.most = IN_FILE, max(self.most, IN_FILE)
            self.yard.ask("up", file=str(self.file), engine="sim")
        elif luck < 0.42:
            self.most += 1  # one may stand in for who has its turn
            self.yard.ask("restart", target="s/worker", rolling=True)
        elif luck < 0.50:
            self.die()
        elif luck < 0.68:
            self.crash()
        else:
            for _ in range(rng.randint(1, 4)):
                self.progress(rng.choice(list(self.yard.supervisor.units.values())))
            self.yard.jump(rng.choice((0.0, 0.5, 5.0, 70.0)))

    def crash(self) -> None:
        units = [u for u in self.yard.supervisor.units.values() if u.state.phase is Phase.READY]
        if units:
            self.yard.post(self.rng.choice(units), e.MainExited, 1 << 8)

    def die(self) -> None:
        """The daemon is killed; births in hand came about, or not."""
        old = self.yard
        for unit in old.supervisor.units.values():
            if unit.state.phase is Phase.STARTING and self.rng.random() < 0.3:
                self.live.pop(str(unit.id), None)
        old.close()
        self.yard = new = Yard(self.folder, self)
        new.loop.now_s = old.loop.now_s
        taking = Taking(new.run_dir, new.deployments, new.supervisor, new, None)
        taking.alive = frozenset(f"{name}.0#{number}" for name, number in self.live.items())
        troubles = new.loop.run_until_complete(taking.run())
        assert troubles == [], troubles
        new.turn()
        self.hear_the_dead()

    def adopt(self, *_) -> None:
        raise AssertionError("the run is asked instead")

    def progress(self, unit) -> None:
        """Let one replica come a step further on its way."""
        yard, phase = self.yard, unit.state.phase
        if str(unit.id) not in self.units():
            return
        if phase is Phase.STARTING and self.rng.random() < 0.1 and not self.at_peace:
            yard.post(unit, e.SpawnFailed, "", "no room")
        elif phase is Phase.STARTING:
            yard.make_ready(unit)
        elif phase is Phase.DRAINING:
            yard.post(unit, e.Drained)
        elif phase is Phase.STOPPING:
            self.live.pop(str(unit.id), None)
            yard.empty(unit, 0)
        elif phase is Phase.READY:
            yard.beat(unit, routes_version=yard.deployments.by_name["s"].routes_version)
        self.hear_the_dead()

    def hear_the_dead(self) -> None:
        """What the daemon knows to be gone is gone for the oracle, too, where it was never born."""
        for unit in self.yard.supervisor.units.values():
            if unit.state.phase not in LIVE:
                self.live.pop(str(unit.id), None)

    at_peace = False

    def go(self) -> None:
        for _ in range(DEEDS):
            self.deed()
            if self.is_well() and not self.yard.deployments.by_name["s"].rolling:
                self.most = self.wanted
        self.at_peace = True
        self.scale(self.wanted)
        for _ in range(PEACE):
            if self.is_well():
                break
            for unit in list(self.yard.supervisor.units.values()):
                self.progress(unit)
            self.yard.jump(1.0)
        assert self.is_well(), f"{self.wanted} wanted, there are {self.yard.phases()}"
        self.yard.close()


def run_seed(seed: int) -> None:
    """Run one seed; AssertionError with its number if it fails."""
    with tempfile.TemporaryDirectory(prefix="sc") as folder:
        try:
            Run(seed, Path(folder)).go()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def main() -> int:
    parser = argparse.ArgumentParser(description="Scale fleets while everything goes wrong.")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        run_seed(seed)
    sys.stdout.write(f"{options.seeds} seeds\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
