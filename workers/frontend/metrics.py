"""What this frontend counts, in Prometheus' words.

Each replica of the frontend counts for itself alone, and they share one port: a scrape through
that port reaches any one of them. `dynorch_frontend_info` says which one answered; what each
replica's beats tell (open requests, requests so far) is in `dynorch status --json`.

What the daemon knows about replicas comes with its routing table, and any frontend tells it: why
one is blocked, in the words of `status` and of the 503, and how often each has failed of what.

Label children are looked up once and kept: finding them costs more than counting.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.wire.routes import Routes

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()
PREFIX = "dynorch_frontend_"
ALONE = " (this replica of the frontend alone)"


class Replicas:
    """What the routing table tells of replicas, at each scrape: who is blocked, who has failed."""

    def __init__(self, routes: Callable[[], Routes | None]) -> None:
        self._routes = routes

    def describe(self) -> list[Metric]:
        """Name nothing before there is a table."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Make the two families from the table in force."""
        routes = self._routes()
        blocked = GaugeMetricFamily(
            "dynorch_replica_blocked",
            "1 for each replica that can't be sent requests, with the reason that a 503 tells",
            labels=["replica", "phase", "cause", "reason"],
        )
        failures = CounterMetricFamily(
            "dynorch_replica_failures",
            "Lives that ended in a failure, by cause, as the daemon counts them",
            labels=["replica", "cause"],
        )
        for one in routes.blocked if routes is not None else []:
            blocked.add_metric([one.replica, one.phase, one.cause, one.reason], 1)
        for failed in routes.failures if routes is not None else []:
            failures.add_metric([failed.replica, failed.cause], failed.count)
        yield blocked
        yield failures


class Metrics:
    """One registry and everything in it.

    `routable` tells the routable workers per model, `degraded_models` those without prefill.
    """

    def __init__(
        self,
        life: str,
        routable: Callable[[], dict[str, int]],
        degraded_models: Callable[[], list[str]] = list,
    ) -> None:
        self._registry = CollectorRegistry()
        self._routable = routable
        self._degraded_models = degraded_models
        requests = self._counter(
            "requests_total", "Requests answered; code 499 is a client that left", "model", "code"
        )
        self._first_byte = self._histogram(
            "time_to_first_byte_seconds", "From a request's arrival to its answer's first byte"
        )
        self._duration = self._histogram(
            "request_duration_seconds", "From a request's arrival to its answer's end"
        )
        self._retries = self._counter("retries_total", "Requests sent again", "reason")
        self._broken = self._counter(
            "broken_answers_total", "Answers that failed after their first byte", "reason"
        )
        picks = self._counter("picks_total", "Workers picked", "reason")
        self.disconnects = self._counter(
            "disconnected_clients_total", "Clients that left before their answer's end"
        )
        self.rejected = self._counter(
            "rejected_requests_total", "Requests answered 429 because too many were open"
        )
        self.stripped = self._counter(
            "stripped_requests_total", "Requests that tried to set what only the frontend may"
        )
        self._prefill = self._histogram(
            "prefill_duration_seconds", "From a request's way to prefill to prefill's whole answer"
        )
        tickets = self._counter(
            "tickets_total",
            "Tickets from prefill: issued, used, dropped (the client left), expired, orphaned (who "
            "issued it had gone)",
            "fate",
        )
        degraded = self._counter(
            "degraded_requests_total",
            "Requests whose prompt decode had to read itself, by reason",
            "reason",
        )
        self._degraded = self._gauge(
            "degraded", "1 for each model with prefill workers of which none can be used", "model"
        )
        self._inflight = self._gauge("inflight_requests", "Requests open now")
        self._workers = self._gauge("routable_workers", "Workers it may send to", "model")
        self._gauge("up", "1 while it runs").set(1)
        self._gauge("info", "Which replica answered this scrape", "life").labels(life).set(1)
        self._ended = lru_cache(1024)(requests.labels)
        self._times = lru_cache(256)(self._labels_of_times)
        self.pick = lru_cache(64)(picks.labels)
        self.ticket = lru_cache(16)(tickets.labels)
        self.degraded = lru_cache(16)(degraded.labels)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text + ALONE, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(PREFIX + name, text + ALONE, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            PREFIX + name, text + ALONE, ["model"], buckets=BUCKETS, registry=self._registry
        )

    def _labels_of_times(self, model: str) -> tuple[Histogram, Histogram]:
        return self._first_byte.labels(model), self._duration.labels(model)

    def watch_open(self, count: Callable[[], int]) -> None:
        """Have `count` asked for the open requests at each scrape."""
        self._inflight.set_function(count)

    def watch_routes(self, routes: Callable[[], Routes | None]) -> None:
        """Have the routing table asked for at each scrape."""
        self._registry.register(Replicas(routes))

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

    def prefilled(self, model: str, duration_s: float) -> None:
        """Count one answer of prefill."""
        self._prefill.labels(model).observe(duration_s)

    def broke(self, reason: str) -> None:
        """Count an answer that the client has only a part of."""
        self._broken.labels(reason).inc()

    def render(self) -> bytes:
        """Write everything in Prometheus' text format."""
        self._workers.clear()
        for model, count in self._routable().items():
            self._workers.labels(model).set(count)
        self._degraded.clear()
        for model in self._degraded_models():
            self._degraded.labels(model).set(1)
        return generate_latest(self._registry)
