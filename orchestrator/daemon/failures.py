"""One line for each replica that was given up: `failures.jsonl` in the state directory.

For whoever comes later, or only has the files that a build kept: the class, how the process ended,
the last lines of its log. The journal has the whole story; this is the end of it, in one place.

Of a replica with GPUs it is told how much of them was in use before its last start and is now. That
is asked of the driver, so its line comes a moment later, and a daemon that ends waits for it. One
that is killed meanwhile leaves a note in the run directory: the next one writes the line, without
those numbers, which nobody can find out any more.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from orchestrator.core.state import Phase, State
from orchestrator.daemon.deployments import write_atomically
from orchestrator.daemon.unit import Unit
from orchestrator.host.fault_points import reached
from orchestrator.wire.ids import ReplicaId

LINES_MAX = 200
BYTES_MAX = 256 << 10
"""Read of a log's end: what 200 lines may have."""

FILE_BYTES_MAX = 16 << 20
"""Then the file becomes `.1`, and the one before that goes."""


Memory = Callable[[Unit], Awaitable[dict[str, Any] | None]]
"""What is in use on a unit's GPUs."""


class Failures:
    """Appends to the file; lines wait in `notes`. `trouble` is told of what can't be written."""

    def __init__(
        self, path: Path, notes: Path, memory: Memory, trouble: Callable[[ReplicaId, str], None]
    ) -> None:
        self._path = path
        self._notes = notes
        self._memory = memory
        self._trouble = trouble
        self._asking: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Write the lines that waited when the daemon before was killed."""
        for note in list(self._notes.iterdir()):
            with contextlib.suppress(OSError, ValueError, LookupError):  # torn, or not ours
                found = json.loads(note.read_text(encoding="utf-8"))
                if not self._is_written(found):
                    self._write(ReplicaId.parse(found["replica"]), found)
            note.unlink(missing_ok=True)

    def changed(self, unit: Unit, before: State) -> None:
        """Write a line if this unit has just been given up."""
        if unit.state.phase is not Phase.FAILED or before.phase is Phase.FAILED:
            return
        found = record(unit, before)
        if not any(member.gpu_uuids for member in unit.spec.members):
            self._write(unit.id, found)
            return
        note = self._note(unit.id, found)
        task = asyncio.get_running_loop().create_task(self._complete(unit, found, note))
        self._asking.add(task)
        task.add_done_callback(self._completed)

    async def close(self) -> None:
        """Wait for the lines that aren't written yet; the driver has its deadline."""
        if self._asking:
            await asyncio.wait(self._asking)

    async def _complete(self, unit: Unit, found: dict[str, Any], note: Path) -> None:
        reached("failures.noted")
        found["gpu_memory"] = await self._memory(unit)
        self._write(unit.id, found)
        self._settle(note)

    @staticmethod
    def _settle(note: Path) -> None:
        reached("failures.written")
        note.unlink(missing_ok=True)

    def _note(self, replica: ReplicaId, found: dict[str, Any]) -> Path:
        """Note a line that waits."""
        note = self._notes / f"{os.urandom(5).hex()}.json"
        try:
            write_atomically(note, _line(found))
        except OSError as error:
            self._trouble(replica, str(error))
        return note

    def _is_written(self, found: dict[str, Any]) -> bool:
        """Whether the daemon before came just so far. When and who is what a line begins with."""
        head = _line({"at": found["at"], "replica": found["replica"]})[:-2]
        try:
            return any(line.startswith(head) for line in self._path.read_bytes().splitlines())
        except FileNotFoundError:
            return False

    def _completed(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.result()  # raises here what was raised there, so that the daemon hears of it

    def _write(self, replica: ReplicaId, found: dict[str, Any]) -> None:
        try:
            self._append(_line(found))
        except OSError as error:
            self._trouble(replica, str(error))

    def _append(self, line: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size > FILE_BYTES_MAX:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            os.write(fd, line)
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


def _line(found: dict[str, Any]) -> bytes:
    return (json.dumps(found, ensure_ascii=False) + "\n").encode("utf-8", "replace")


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
