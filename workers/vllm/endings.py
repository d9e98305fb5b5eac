"""How vLLM ends processes that don't want to go, and what it must not kill on the way.

A start that fails or is cancelled ends with vLLM killing EngineCore and all below it, Python's
resource tracker included. But the tracker is who removes the shared memory of the killed, and once
all of them are gone nobody knows its names any more: two segments, hundreds of megabytes in name,
stay in /dev/shm for good. The tracker ends by itself when the last of its family has.
"""

import contextlib
import os
import signal
from types import ModuleType

from workers.runtime import kin

NAME = "kill_process_tree"


def spare_trackers(utils: ModuleType) -> None:
    """Replace the killer in `vllm.v1.utils`, if it still has that name."""
    if hasattr(utils, NAME):
        setattr(utils, NAME, kill)


def kill(pid: int) -> None:
    """Kill a process and all below it, without those who clean up after them."""
    for victim in [*(one.pid for one in kin.below(pid)), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
