"""Ranks of a gang step together: the experts of each are on all, so nobody steps alone.

Each rank says when it is ready for its next step, and whether with work; when all are, member 0
says `step`, and one without work makes it for the others' sake. When nobody had work it says
`rest`, and nothing turns any more until a rank that has some says so, which begins a new wave. A
rank that doesn't come stops all the others, and none of them knows it.

    rank      -> member 0   work | busy | idle
    member 0  -> all        wave | step | rest
"""

from collections.abc import Callable
from typing import Protocol


class Steps(Protocol):
    """The rank's own batch."""

    def assemble(self) -> None:
        """Begin a wave."""

    def step(self) -> None:
        """Make one step."""

    def rest(self) -> None:
        """End the wave."""


class Lockstep:
    """One rank's part in it, see `stepper.Pace`. `send(member, word)` to another rank."""

    def __init__(self, member: int, size: int, steps: Steps) -> None:
        self._member = member
        self._others = [other for other in range(size) if other != member]
        self._size = size
        self.send: Callable[[int, str], None] = lambda _member, _word: None
        self._steps = steps
        self._orders = {"wave": self._assemble, "step": steps.step, "rest": steps.rest}
        self._asked = False
        # Member 0 only.
        self._wave = False
        self._ready: dict[int, bool] = {}

    def work(self) -> None:
        """Begin a wave, unless that is asked for already."""
        if not self._asked:
            self._asked = True
            self._tell("work")

    def arrive(self, busy: bool) -> None:
        """Be ready for the next step."""
        self._tell("busy" if busy else "idle")

    def heard(self, member: int, word: str) -> None:
        """Act on what another rank says."""
        if self._member:
            order = self._orders.get(word)
            if member == 0 and order is not None:
                order()
        elif word == "work":
            if not self._wave:
                self._wave = True
                self._order("wave")
        elif word in ("busy", "idle"):
            self._ready[member] = word == "busy"
            if len(self._ready) == self._size:
                self._all_ready()

    def _all_ready(self) -> None:
        self._wave = any(self._ready.values())
        self._ready.clear()
        self._order("step" if self._wave else "rest")

    def _tell(self, word: str) -> None:
        if self._member:
            self.send(0, word)
        else:
            self.heard(0, word)

    def _order(self, word: str) -> None:
        """Say it to the others first: what we do ourselves may lead to the next word."""
        for other in self._others:
            self.send(other, word)
        self._orders[word]()

    def _assemble(self) -> None:
        self._asked = False
        self._steps.assemble()
