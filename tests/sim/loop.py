"""An event loop whose clock is the world's: what the daemon's own code needs of asyncio, no more.

So the supervisor that runs here is the real one. A call belongs to the daemon that asked for it:
when that one is dead, it never comes.
"""


class Handle:
    """One call that was asked for."""

    def __init__(self, loop, when, call, args) -> None:
        self.loop, self.when, self.call, self.args = loop, when, call, args
        self.epoch = loop.world.epoch
        self.cancelled = self.done = False

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def pending(self) -> bool:
        return not (self.cancelled or self.done)

    def run(self) -> None:
        """Sometimes a cancelled call comes all the same: it lay in the mailbox already."""
        world = self.loop.world
        late = self.cancelled and world.faults and world.rng.random() < 0.5
        if world.epoch == self.epoch and (late or not self.cancelled):
            self.done = True
            self.call(*self.args)


class Loop:
    def __init__(self, world) -> None:
        self.world = world

    def time(self) -> float:
        return self.world.now

    def call_at(self, when, call, *args) -> Handle:
        handle = Handle(self, when, call, args)
        self.world.at(when - self.world.now, handle.run)
        return handle

    def call_later(self, delay_s, call, *args) -> Handle:
        return self.call_at(self.world.now + delay_s, call, *args)

    def call_soon(self, call, *args) -> Handle:
        return self.call_at(self.world.now, call, *args)
