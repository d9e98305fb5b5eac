"""Entry of a simulated worker: called in the forked process, returns its exit status."""

import logging
import sys

from orchestrator.wire import config
from workers.runtime.serve import serve
from workers.sim.engine import SimEngine


def main(blob: bytes) -> int:
    """Run one simulated engine until it ends; `blob` is an encoded `WorkerConfig`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    settings = config.decode(blob)
    return serve(settings, SimEngine(settings))
