"""What this frontend counts, in Prometheus' words.

Each replica of the frontend counts for itself alone, and they share one port: a scrape through
that port reaches any one of them. `dynorch_frontend_info` says which one answered; to see all,
read the daemon's metrics, which carry what each replica's beats tell.

Label children are looked up once and kept: finding them costs more than counting.
"""

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
_ALONE = "(this replica of the frontend alone)"


class Metrics:
    """One registry and everything in it. `routable` tells the routable workers per model."""

    def __init__(self, life: str, routable: Callable[[], dict[str, int]]) -> None:
        registry = CollectorRegistry()
        prefix = "dynorch_frontend_"
        self._registry = registry
        self._routable = routable
        self._requests = Counter(
            prefix + "requests_total",
            f"Requests answered, by model and status; 499 is a client that left {_ALONE}",
            ["model", "code"],
            registry=registry,
        )
        self._first_byte = Histogram(
            prefix + "time_to_first_byte_seconds",
            f"From the request's arrival to the answer's first byte {_ALONE}",
            ["model"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            prefix + "request_duration_seconds",
            f"From the request's arrival to the answer's end {_ALONE}",
            ["model"],
            buckets=BUCKETS,
            registry=registry,
        )
        self._retries = Counter(
            prefix + "retries_total", f"Requests sent again {_ALONE}", ["reason"], registry=registry
        )
        self._picks = Counter(
            prefix + "picks_total",
            f"Workers picked, by reason {_ALONE}",
            ["reason"],
            registry=registry,
        )
        self._broken = Counter(
            prefix + "broken_answers_total",
            f"Answers that failed after their first byte, by reason {_ALONE}",
            ["reason"],
            registry=registry,
        )
        self.inflight = Gauge(
            prefix + "inflight_requests", f"Requests open now {_ALONE}", registry=registry
        )
        self.disconnects = Counter(
            prefix + "disconnected_clients_total",
            f"Clients that left before their answer's end {_ALONE}",
            registry=registry,
        )
        self.rejected = Counter(
            prefix + "rejected_requests_total",
            f"Requests answered 429 because too many were open {_ALONE}",
            registry=registry,
        )
        self.stripped = Counter(
            prefix + "stripped_requests_total",
            f"Requests that tried to set what only the frontend may {_ALONE}",
            registry=registry,
        )
        self._workers = Gauge(
            prefix + "routable_workers",
            "Workers that this frontend may send a model's requests to",
            ["model"],
            registry=registry,
        )
        Gauge(prefix + "up", "1 while this frontend runs", registry=registry).set(1)
        info = Gauge(prefix + "info", "Which replica answered", ["life"], registry=registry)
        info.labels(life).set(1)
        self._ended = lru_cache(1024)(self._requests.labels)
        self._times = lru_cache(256)(self._labels_of_times)
        self.pick = lru_cache(64)(self._picks.labels)

    def _labels_of_times(self, model: str) -> tuple[Histogram, Histogram]:
        return self._first_byte.labels(model), self._duration.labels(model)

    def ended(self, model: str, code: int, first_byte_s: float | None, duration_s: float) -> None:
        """Count one request."""
        self._ended(model, code).inc()
        first_byte, duration = self._times(model)
        if first_byte_s is not None:
            first_byte.observe(first_byte_s)
        duration.observe(duration_s)

    def retried(self, reason: str) -> None:
        """Count one more attempt for a request."""
        self._retries.labels(reason).inc()

    def broke(self, reason: str) -> None:
        """Count an answer that the client has only a part of."""
        self._broken.labels(reason).inc()

    def render(self) -> bytes:
        """Write everything in Prometheus' text format."""
        self._workers.clear()
        for model, count in self._routable().items():
            self._workers.labels(model).set(count)
        return generate_latest(self._registry)
