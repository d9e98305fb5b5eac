"""What vLLM's NixlConnector counts, under vLLM's names, so that one dashboard reads both."""

from prometheus_client import CollectorRegistry, Counter, Histogram

TOKEN_BYTES = 114_688
"""Keys and values of one token, as a small real model has them: 28 layers of 8 heads of 128."""
_LABELS = ("model_name", "engine")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 5.0)
_BYTES = tuple(2.0 ** (10 + power) for power in range(1, 25, 2))


class TransferFigures:
    """One engine's. The reader counts transfers and failures, the lender what expired."""

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self._registry = registry
        self._model = model
        self._seconds = self._histogram("xfer_time_seconds", "Duration of transfers.", _SECONDS)
        self._bytes = self._histogram("bytes_transferred", "Bytes per transfer.", _BYTES)
        self._failed = self._counter(
            "num_failed_transfers", "Failed transfers, handshakes and notifications."
        )
        self._unnoted = self._counter("num_failed_notifications", "Failed notifications.")
        self._expired = self._counter(
            "num_kv_expired_reqs", "Requests whose blocks were freed unread."
        )
        self._late = self._counter(
            "num_notifications_after_expiry", "Notifications of requests that weren't kept."
        )

    def transferred(self, tokens: int, seconds: float) -> None:
        """Count a transfer."""
        self._seconds.observe(seconds)
        self._bytes.observe(tokens * TOKEN_BYTES)

    def failed(self) -> None:
        """Count a failed transfer or handshake."""
        self._failed.inc()

    def not_noted(self) -> None:
        """Count a notification that didn't arrive."""
        self._failed.inc()
        self._unnoted.inc()

    def expired(self) -> None:
        """Count a request whose lease ended."""
        self._expired.inc()

    def late(self) -> None:
        """Count a notification of a request that isn't kept."""
        self._late.inc()

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(f"vllm:nixl_{name}", text, _LABELS, registry=self._registry)
        return made.labels(self._model, "0")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        made = Histogram(
            f"vllm:nixl_{name}", text, _LABELS, registry=self._registry, buckets=buckets
        )
        return made.labels(self._model, "0")
