"""One line for each replica that was given up: `failures.jsonl` in the state directory.

For whoever comes later, or only has the files that a build kept: the class, how the process ended,
the last lines of its log. The journal has the whole story; this is the end of it, in one place.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from orchestrator.core.state import Phase, State
from orchestrator.daemon.unit import Unit

LINES_MAX = 200
BYTES_MAX = 256 << 10
"""Read of a log's end: what 200 lines may have."""

FILE_BYTES_MAX = 16 << 20
"""Then the file becomes `.1`, and the one before that goes."""


class Failures:
    """Appends to the file; an OSError is the caller's to tell."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def changed(self, unit: Unit, before: State) -> None:
        """Write a line if this unit has just been given up."""
        if unit.state.phase is not Phase.FAILED or before.phase is Phase.FAILED:
            return
        line = json.dumps(record(unit, before), ensure_ascii=False) + "\n"
        if self._path.exists() and self._path.stat().st_size > FILE_BYTES_MAX:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            os.write(fd, line.encode("utf-8", "replace"))
        finally:
            os.close(fd)


def record(unit: Unit, before: State) -> dict[str, Any]:
    """What is known. `gpu_memory` is None where nobody looked."""
    member = before.fault.member if before.fault is not None else 0
    heard = unit.heard.get(member)
    status = heard.status if heard and heard.incarnation == unit.state.incarnation else None
    reason = unit.state.reason
    return {
        "at": time.time(),
        "replica": str(unit.id),
        "member": member,
        "incarnation": unit.state.incarnation,
        "class": reason.cause.value,
        "reason": reason.sentence,
        "advice": reason.advice,
        "evidence": reason.evidence,
        "exit_code": None if status is None or status & 0x7F else status >> 8 & 0xFF,
        "signal": _signal(status),
        "gpu_memory": None,
        "log": unit.spec.logs[member],
        "tail": last_lines(Path(unit.spec.logs[member])),
    }


def _signal(status: int | None) -> str | None:
    number = status & 0x7F if status is not None else 0
    if not number:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def last_lines(path: Path) -> list[str]:
    """Return the end of a log; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - BYTES_MAX))
            lines = file.read(BYTES_MAX).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return lines[-LINES_MAX:]
