"""A stop and a restart at the same instant, at any moment of a replica's life."""

from tests.sim.daemon import inside
from tests.sim.run import Run


class Duel:
    """A fleet of a seed, without faults, in which one replica gets two requests at once."""

    def __init__(self, seed: int, order: tuple[str, str]) -> None:
        self.order = order
        self.run_of_seed = Run(seed)
        self.world = self.run_of_seed.world
        self.world.faults = False

    def run(self) -> None:
        with inside(self.world):
            self.fight()

    def fight(self) -> None:
        run, world, operator = self.run_of_seed, self.world, self.world.operator
        name = world.rng.choice(list(run.policies))
        for other in run.policies:
            operator.ask(other, "start")
        for _ in range(world.rng.randrange(60)):  # into whatever phase that leads to
            run.tick()
        at = world.rng.choice((0.0, 0.005, 0.6))
        for kind in self.order:
            operator.ask(name, kind, at)
        while not (run.settled() and world.daemon.state(name).intent == operator.intent):
            assert run.tick(), f"nothing will ever happen again: {run.describe()}"
        lives = [life for life in world.lives.get(name, ()) if life.alive]
        if self.order[-1] == "stop":
            assert not lives, f"{name}: stopped last, and lives"
        elif not run.waits_in_vain(name):
            done = run.policies[name].oneshot
            assert len(lives) == (0 if done else run.policies[name].members)
        assert run.ledgers[name].wish == ("down" if self.order[-1] == "stop" else "up")
