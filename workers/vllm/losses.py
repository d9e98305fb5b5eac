"""Which of the engine's processes died, and how, in one sentence.

vLLM itself only says that "EngineCore encountered an issue". Who really died is known in two
places: EngineCore is a child of ours, so its process object has the exit code; its workers are
EngineCore's children, and EngineCore logs theirs (see `tidings`). Both are read defensively: they
are vLLM's internals, and an engine must not die unexplained because one of them was renamed.

The coordinator of data-parallel ranks, a child of rank 0, is missed by nobody: vLLM goes on, and
requests to ranks that were idle wait for ever. So it is looked after here.
"""

import re
import signal
from collections.abc import Iterator
from typing import Any

from workers.vllm.tidings import Tidings

UNEXPLAINED = "the engine died and didn't say why; its last log lines may"


HEARSAY = ("Executor failed", "EngineCore encountered an issue")
"""What EngineCore says when a worker of its own is dead. Who it was follows a moment later."""


def sentence(engine: object, tidings: Tidings, *, final: bool = False) -> str:
    """Say what is known by now; empty while nothing is, or (unless `final`) only hearsay."""
    cause = tidings.root_cause()
    if not final and any(phrase in cause for phrase in HEARSAY):
        cause = ""
    for name, exitcode in _dead(engine, tidings):
        if exitcode < 0:
            return f"{name} {ended(exitcode)}"
        if exitcode > 0 and (cause or final):
            return f"{name} {ended(exitcode)}: {cause}" if cause else f"{name} {ended(exitcode)}"
    return f"the engine failed: {cause}" if cause else ""


def ended(exitcode: int) -> str:
    """Spell a `multiprocessing` exit code: negative for a signal."""
    if exitcode >= 0:
        return f"exited with status {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


def lost_coordinator(engine: object) -> bool:
    """Say whether the ranks had a coordinator, and it has ended."""
    return any(process.exitcode is not None for process in _coordinators(engine))


def _dead(engine: object, tidings: Tidings) -> Iterator[tuple[str, int]]:
    """Name and exit code of the dead; workers first, for EngineCore follows its worker."""
    for lost in tidings.lost:
        rank = re.sub(r"^VllmWorker-?", "", lost.name)
        yield f"VLLM::Worker (rank {rank})" if rank else "VLLM::Worker", lost.exitcode
    for process in _processes(engine):
        exitcode = getattr(process, "exitcode", None)
        if exitcode is not None:
            yield f"VLLM::{getattr(process, 'name', 'EngineCore')}", exitcode
    for process in _coordinators(engine):
        if process.exitcode is not None:
            yield "VLLM::DPCoordinator", process.exitcode


def _processes(engine: object) -> list[Any]:
    manager = getattr(_resources(engine), "engine_manager", None)
    return list(getattr(manager, "processes", None) or [])


def _coordinators(engine: object) -> list[Any]:
    """One or none."""
    process = getattr(getattr(_resources(engine), "coordinator", None), "proc", None)
    return [process] if hasattr(process, "exitcode") else []


def _resources(engine: object) -> object:
    return getattr(getattr(engine, "engine_core", None), "resources", None)
