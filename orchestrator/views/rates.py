"""Tokens per second from counters that only grow.

Two snapshots make a rate, but those that follow an event lie too close together to make a good
one, so a life's rate is measured over at least a second. A new incarnation starts from nothing:
its counter is another life's, never a continuation.
"""

from collections.abc import Iterable
from typing import NamedTuple

from orchestrator.wire.snapshot import WorkerStatus

WINDOW_S = 0.9
"""The shortest time that a rate is measured over."""


class _Sample(NamedTuple):
    at_s: float
    tokens: int
    rate: float


class Rates:
    """The rate of every worker in the last snapshot; lives that are gone are forgotten."""

    def __init__(self) -> None:
        self._samples: dict[str, _Sample] = {}

    def take(self, workers: Iterable[WorkerStatus], now_s: float) -> None:
        """Read the counters of a snapshot taken at `now_s`."""
        self._samples = {worker.id: self._sample(worker, now_s) for worker in workers}

    def of(self, workers: Iterable[WorkerStatus]) -> float:
        """Tokens per second of these workers together."""
        return sum(self._samples[w.id].rate for w in workers if w.id in self._samples)

    def _sample(self, worker: WorkerStatus, now_s: float) -> _Sample:
        last = self._samples.get(worker.id)
        if last is None or worker.tokens < last.tokens:
            return _Sample(now_s, worker.tokens, 0.0)
        passed_s = now_s - last.at_s
        if passed_s < WINDOW_S:
            return last
        return _Sample(now_s, worker.tokens, (worker.tokens - last.tokens) / passed_s)
