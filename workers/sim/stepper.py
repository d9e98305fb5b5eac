"""Time and memory of the simulated engine: one batch, one step after the other.

A step admits what fits, lasts as long as the model of time says, and at its end every running
sequence has one more token. There is one loop timer per step, whatever the batch; without work
there is none, so an idle engine never wakes. A rank of a gang makes its steps with all the others,
when the gang says so, with work or without.

Admission promises the KV blocks that a sequence can need at most, in order of arrival, so nothing
is ever preempted and nothing overtakes. The queue is bounded by the requests a worker may have
open and the sequences a request may ask for. Whose prompt was prefilled elsewhere is admitted
twice: to fetch it into blocks of its own, and when that is done, or failed, to the batch.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from workers.sim.blocks import Block, Blocks
from workers.sim.options import Options
from workers.sim.sequence import Sequence
from workers.sim.sink import EngineDeadError, GenerationError, Sink
from workers.sim.ticket import Wish


class Connector(Protocol):
    """Where blocks come from that this engine didn't fill, and go that others will read."""

    def queued(self, sequence: Sequence) -> None:
        """Note that a sequence waits for blocks to fetch into."""

    def fetch(self, sequence: Sequence) -> None:
        """Begin to read into its blocks; `Stepper.fetched` is called at the end."""

    def dropped(self, sequence: Sequence) -> None:
        """Note that its client left before its blocks were there."""

    def rejected(self, wish: Wish | None) -> None:
        """Note that a request was refused before it was a sequence."""

    def lend(self, sequence: Sequence) -> None:
        """Take over the blocks of a sequence that has ended, until others have read them."""


class Pace(Protocol):
    """When the ranks of a gang make their steps."""

    def work(self) -> None:
        """There is work, and no step is under way."""

    def arrive(self, busy: bool) -> None:
        """Be ready for the next step; `busy`: with something to do in it."""


class Stepper:
    """The batch, the queue before it, and the clock. `on_tokens(total)` is told after each step."""

    connector: Connector | None = None
    pace: Pace | None = None

    def __init__(self, options: Options, on_tokens: Callable[[int], None]) -> None:
        self.tokens = 0
        self.steps = 0
        self.dummies = 0
        self.hung = False
        self.mute = False
        self.death = ""
        self.blocks = Blocks(options.kv_blocks, options.block_size)
        self._options = options
        self._fails = options.kv_transfer is not None and options.kv_transfer.on_failure == "fail"
        self._on_tokens = on_tokens
        self._waiting: deque[tuple[Sequence, Sink]] = deque()
        self._fetching: dict[Sequence, Sink] = {}
        self._fetched: deque[tuple[Sequence, Sink, bool]] = deque()
        self._running: dict[Sequence, Sink] = {}
        self._stepping = False
        self._news = False
        self._prefill = 0
        self._step_at = 0.0

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences not in the batch yet."""
        return len(self._waiting) + len(self._fetching) + len(self._fetched)

    def submit(self, sequences: list[Sequence], sink: Sink) -> None:
        """Queue sequences; all that come in one loop pass begin in the same step."""
        if self.death:
            sink.fail(EngineDeadError(self.death))
            return
        self._waiting.extend((sequence, sink) for sequence in sequences)
        if self.connector is not None:
            for sequence in filter(_fetches, sequences):
                self.connector.queued(sequence)
        self.wake()

    def fetched(self, sequence: Sequence, contents: list[Block] | None) -> None:
        """End a sequence's fetching; None: it failed."""
        sink = self._fetching.pop(sequence)
        if contents is not None:
            self.blocks.copy(sequence.blocks, contents)
        elif self._fails:
            self._free(sequence)
            sink.fail(GenerationError("Internal server error"))
            return
        self._fetched.append((sequence, sink, contents is not None))
        self.wake()

    def die(self, why: str) -> None:
        """Make no step any more and tell every request so."""
        self.hung = True
        self.death = why
        sinks = {*self._running.values(), *self._fetching.values()}
        sinks |= {sink for _sequence, sink in self._waiting}
        sinks |= {sink for _sequence, sink, _filled in self._fetched}
        for sink in sinks:
            sink.fail(EngineDeadError(why))

    def abort(self, sink: Sink) -> None:
        """Forget a request's sequences and give their blocks back."""
        dropped = [mine for mine, owner in self._waiting if owner is sink]
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not sink)
        fetching = [mine for mine, owner in self._fetching.items() if owner is sink]
        for sequence in fetching:
            del self._fetching[sequence]
        if self.connector is not None:
            for sequence in filter(_fetches, dropped + fetching):
                self.connector.dropped(sequence)
        held = fetching + [entry[0] for entry in self._fetched if entry[1] is sink]
        self._fetched = deque(entry for entry in self._fetched if entry[1] is not sink)
        for sequence in held:
            self._free(sequence)
        for sequence in [mine for mine, owner in self._running.items() if owner is sink]:
            self._release(sequence)
        self.wake()

    def wake(self) -> None:
        """Look at the queue: there is something new in it, or blocks for what is in it."""
        self._news = True
        if self._stepping or self.hung or not (self._waiting or self._fetched):
            return
        if self.pace is not None:
            self.pace.work()
        else:
            self._stepping = True
            loop = asyncio.get_running_loop()
            self._step_at = loop.time()
            loop.call_soon(self._prepare)

    # ---- one step, and in a gang the orders for it -------------------------------------------

    def assemble(self) -> None:
        """Begin to make steps with the others."""
        self._stepping = True
        self._step_at = asyncio.get_running_loop().time()
        self._prepare()

    def rest(self) -> None:
        """Make no steps: nobody had anything to do. What came meanwhile begins anew."""
        self._stepping = False
        if self._news:
            self.wake()

    def step(self) -> None:
        """Make one step."""
        loop = asyncio.get_running_loop()
        duration_s = self._options.step + self._prefill / self._options.prefill_rate
        # Counted from the last step's end, so that lateness doesn't add up; unless we fell behind.
        self._step_at = max(self._step_at + duration_s, loop.time())
        loop.call_at(self._step_at, self._end)

    def _prepare(self) -> None:
        self._news = False
        self._prefill = self._admit()
        if self.hung:
            self._stepping = False
        elif self.pace is not None:
            self.pace.arrive(bool(self._running))
        elif self._running:
            self.step()
        else:
            self._stepping = False

    def _end(self) -> None:
        if self.hung:
            self._stepping = False
            return
        done = []
        for sequence, sink in self._running.items():
            sink.push(sequence.advance())
            if sequence.finish:
                done.append(sequence)
        self.tokens += len(self._running)
        self.steps += 1
        self.dummies += not self._running
        for sequence in done:
            self._release(sequence)
        self._on_tokens(self.tokens)
        self._prepare()

    # ---- memory ------------------------------------------------------------------------------

    def _admit(self) -> int:
        """Move what fits from queue to batch; the prompt tokens that this step must prefill."""
        prefill = 0
        while len(self._running) < self._options.batch_max and not self.hung:
            if self._fetched:
                sequence, sink, filled = self._fetched.popleft()
            elif self._waiting and self._place(self._waiting[0][0]):
                sequence, sink = self._waiting.popleft()
                filled = False
                if self.connector is not None and _fetches(sequence):
                    self._fetching[sequence] = sink
                    self.connector.fetch(sequence)
                    continue
            else:
                break
            if not filled:
                self.blocks.write(sequence.blocks, sequence.prompt)
                prefill += len(sequence.prompt)
            sequence.go_on_from(self.blocks.read(sequence.blocks))
            self._running[sequence] = sink
        return prefill

    def _place(self, sequence: Sequence) -> bool:
        """Give it its blocks, if there are so many."""
        needed = self.blocks.needed(sequence.tokens_max)
        if not self.blocks.promise(needed):
            return False
        sequence.blocks = self.blocks.take(self.blocks.needed(len(sequence.prompt)))
        sequence.promised = needed - len(sequence.blocks)
        return True

    def _release(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch, at its end or before."""
        del self._running[sequence]
        wish = sequence.wish
        if self.connector is not None and wish is not None and wish.lends and sequence.finish:
            self.connector.lend(sequence)
        self._free(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.blocks.give_back(sequence.blocks, sequence.promised)
        sequence.blocks, sequence.promised = [], 0


def _fetches(sequence: Sequence) -> bool:
    return sequence.wish is not None and sequence.wish.fetches
