"""Time and memory of the simulated engine: one batch, one step after the other.

A step admits what fits, lasts as long as the model of time says, and at its end every running
sequence has one more token. There is one loop timer per step, whatever the batch; without work
there is none, so an idle engine never wakes.

Admission reserves the KV blocks that a sequence can need at most, in order of arrival, so nothing
is ever preempted and nothing overtakes. The queue is bounded by the requests a worker may have
open and the sequences a request may ask for.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from workers.sim.options import Options
from workers.sim.sequence import Delta, Sequence


class EngineDeadError(Exception):
    """The engine died under a request."""


class Sink:
    """Where one request's tokens arrive. What it holds is bounded by the sequences' limits."""

    def __init__(self) -> None:
        self._closed = False
        self._death = ""
        self._deltas: list[Delta] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        """Add a token and wake the request."""
        self._deltas.append(delta)
        self._wake()

    def close(self) -> None:
        """Say that no more will come: the client is gone."""
        self._closed = True
        self._wake()

    def fail(self, why: str) -> None:
        """Say that no more will come: the engine is dead."""
        self._death = why
        self._wake()

    async def take(self) -> list[Delta]:
        """Wait for tokens and take all there are; none means closed. EngineDeadError if it is."""
        while not (self._deltas or self._closed or self._death):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        taken, self._deltas = self._deltas, []
        if self._death and not taken:
            raise EngineDeadError(self._death)
        return [] if self._closed else taken

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Stepper:
    """The batch, the queue before it, and the clock. `on_tokens(total)` is told after each step."""

    def __init__(self, options: Options, on_tokens: Callable[[int], None]) -> None:
        self.tokens = 0
        self.hung = False
        self.mute = False
        self.death = ""
        self.blocks_free = options.kv_blocks
        self._options = options
        self._on_tokens = on_tokens
        self._waiting: deque[tuple[Sequence, Sink]] = deque()
        self._running: dict[Sequence, Sink] = {}
        self._timer: asyncio.Handle | None = None
        self._step_at = 0.0

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences not admitted yet."""
        return len(self._waiting)

    def submit(self, sequences: list[Sequence], sink: Sink) -> None:
        """Queue sequences; all that come in one loop pass begin in the same step."""
        if self.death:
            sink.fail(self.death)
            return
        self._waiting.extend((sequence, sink) for sequence in sequences)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._step_at = loop.time()
            self._timer = loop.call_soon(self._begin)

    def die(self, why: str) -> None:
        """Make no step any more and tell every request so."""
        self.hung = True
        self.death = why
        for sink in {*self._running.values(), *(sink for _sequence, sink in self._waiting)}:
            sink.fail(why)

    def abort(self, sink: Sink) -> None:
        """Forget a request's sequences and give their blocks back."""
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not sink)
        for sequence in [mine for mine, owner in self._running.items() if owner is sink]:
            self._release(sequence)

    def _begin(self) -> None:
        prefill = self._admit()
        if self.hung or not self._running:
            self._timer = None
            return
        loop = asyncio.get_running_loop()
        duration_s = self._options.step + prefill / self._options.prefill_rate
        # Counted from the last step's end, so that lateness doesn't add up; unless we fell behind.
        self._step_at = max(self._step_at + duration_s, loop.time())
        self._timer = loop.call_at(self._step_at, self._end)

    def _end(self) -> None:
        if self.hung:
            self._timer = None
            return
        done = []
        for sequence, sink in self._running.items():
            sink.push(sequence.advance())
            if sequence.finish:
                done.append(sequence)
        self.tokens += len(self._running)
        for sequence in done:
            self._release(sequence)
        self._begin()
        self._on_tokens(self.tokens)

    def _admit(self) -> int:
        """Move what fits from queue to batch; the prompt tokens that this step must prefill."""
        prefill = 0
        while self._waiting and len(self._running) < self._options.batch_max:
            sequence, sink = self._waiting[0]
            blocks = self.blocks_of(sequence.tokens_max)
            if blocks > self.blocks_free:
                break
            self._waiting.popleft()
            self.blocks_free -= blocks
            self._running[sequence] = sink
            prefill += sequence.prompt_tokens
        return prefill

    def _release(self, sequence: Sequence) -> None:
        del self._running[sequence]
        self.blocks_free += self.blocks_of(sequence.tokens_max)

    def blocks_of(self, tokens: int) -> int:
        """Count the KV blocks that so many tokens fill."""
        return -(-tokens // self._options.block_size)
