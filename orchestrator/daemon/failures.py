"""One line for each replica that was given up: `failures.jsonl` in the state directory.

For whoever comes later, or only has the files that a build kept: the class, how the process ended,
the last lines of its log. The journal has the whole story; this is the end of it, in one place.

Of a replica with GPUs it is told how much of them was in use before its last start and is now. That
is asked of the driver, so its line comes a moment later, and a daemon that ends waits for it.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from orchestrator.core.state import Phase, State
from orchestrator.daemon.unit import Unit
from orchestrator.wire.ids import ReplicaId

LINES_MAX = 200
BYTES_MAX = 256 << 10
"""Read of a log's end: what 200 lines may have."""

FILE_BYTES_MAX = 16 << 20
"""Then the file becomes `.1`, and the one before that goes."""


Memory = Callable[[Unit], Awaitable[dict[str, Any] | None]]
"""What is in use on a unit's GPUs."""


class Failures:
    """Appends to the file. `trouble` is told of what couldn't be written."""

    def __init__(
        self, path: Path, memory: Memory, trouble: Callable[[ReplicaId, str], None]
    ) -> None:
        self._path = path
        self._memory = memory
        self._trouble = trouble
        self._asking: set[asyncio.Task[None]] = set()

    def changed(self, unit: Unit, before: State) -> None:
        """Write a line if this unit has just been given up."""
        if unit.state.phase is not Phase.FAILED or before.phase is Phase.FAILED:
            return
        found = record(unit, before)
        if not any(member.gpu_uuids for member in unit.spec.members):
            self._write(unit.id, found)
            return
        task = asyncio.get_running_loop().create_task(self._complete(unit, found))
        self._asking.add(task)
        task.add_done_callback(self._completed)

    async def close(self) -> None:
        """Wait for the lines that aren't written yet; the driver has its deadline."""
        if self._asking:
            await asyncio.wait(self._asking)

    async def _complete(self, unit: Unit, found: dict[str, Any]) -> None:
        found["gpu_memory"] = await self._memory(unit)
        self._write(unit.id, found)

    def _completed(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.result()  # raises here what was raised there, so that the daemon hears of it

    def _write(self, replica: ReplicaId, found: dict[str, Any]) -> None:
        try:
            self._append(json.dumps(found, ensure_ascii=False) + "\n")
        except OSError as error:
            self._trouble(replica, str(error))

    def _append(self, line: str) -> None:
        if self._path.exists() and self._path.stat().st_size > FILE_BYTES_MAX:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            os.write(fd, line.encode("utf-8", "replace"))
        finally:
            os.close(fd)


def record(unit: Unit, before: State) -> dict[str, Any]:
    """What is known at once. `gpu_memory` is None where it has no GPUs, or nobody looks at them."""
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
