"""The engine's own figures, read when somebody scrapes and at no other time.

The registry is our own: the process-wide default one belongs to whoever else is in the process.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.sim.stepper import Stepper


class _Figures(Collector):
    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def collect(self) -> Iterator[Metric]:
        stepper = self._stepper
        yield GaugeMetricFamily(
            "dynorch_sim_sequences_running", "Sequences in the batch.", stepper.running
        )
        yield GaugeMetricFamily(
            "dynorch_sim_sequences_waiting", "Sequences not admitted yet.", stepper.waiting
        )
        yield GaugeMetricFamily(
            "dynorch_sim_kv_blocks_free", "KV blocks not reserved.", stepper.blocks.free
        )
        yield CounterMetricFamily(
            "dynorch_sim_steps", "Steps made, those for other ranks included.", float(stepper.steps)
        )
        yield CounterMetricFamily(
            "dynorch_sim_dummy_steps", "Steps made for other ranks only.", float(stepper.dummies)
        )
        yield CounterMetricFamily("dynorch_sim_tokens", "Tokens generated.", float(stepper.tokens))


class Metrics:
    """Renders one engine's figures for Prometheus."""

    def __init__(self, stepper: Stepper, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._registry.register(_Figures(stepper))

    def render(self) -> bytes:
        """Render the text exposition format."""
        return generate_latest(self._registry)
