"""The entry of a vLLM worker: `main(blob)`, called by the shim in a process fresh from the zygote.

Imports nothing heavy: outside the zygote, vLLM takes ten seconds to import, and the daemon should
hear from the worker before that.
"""

import os
import sys
import tempfile

from orchestrator.wire import config as wire
from workers.runtime.serve import serve
from workers.vllm.engine import VllmEngine


def main(blob: bytes) -> int:
    """Serve until SIGTERM or the engine's death, then exit with the runtime's status."""
    # The zygote's imports may have asked for the temporary directory and so fixed its own.
    tempfile.tempdir = None
    config = wire.decode(blob)
    status = serve(config, VllmEngine(config))
    sys.stdout.flush()
    sys.stderr.flush()
    # Left to itself, the interpreter would take a second to tear itself down, and bury the last
    # words under forty lines about what C++ bindings have leaked.
    os._exit(status)
