"""Entry of a simulated worker: called in the forked process, returns its exit status."""

from orchestrator.wire import config
from workers.runtime.serve import serve
from workers.sim.engine import SimEngine


def main(blob: bytes) -> int:
    """Run one simulated engine until it ends; `blob` is an encoded `WorkerConfig`."""
    settings = config.decode(blob)
    return serve(settings, SimEngine(settings))
