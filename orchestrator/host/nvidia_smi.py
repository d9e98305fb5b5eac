"""The driver's answers from its own command, where its library can't be loaded into this process.

`nvidia-smi` comes with every driver; its CSV output says what NVML would, a process and a tenth of
a second per question dearer. It is asked with a timeout, and its exit status isn't looked at: the
daemon's one reaper may have taken it. What counts is what it printed, a line for each device.

It lists no MIG instances in that form: where a GPU is cut into them, more is asked (`mig_text`).
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection

from orchestrator.host import mig_text, prctl
from orchestrator.host.gpu_links import Link
from orchestrator.host.gpus import Gpu, Memory, Mute, User
from orchestrator.host.mig_text import Instance, mib

PROGRAM = "nvidia-smi"
TIMEOUT_S = 10.0
"""Less than the daemon's patience with the driver, so that it is this command that is given up."""

LATE = "hasn't answered for"
PART = "MIG-"
FIELDS = "index,uuid,name,memory.total,memory.used,memory.free,mig.mode.current"
_LOST = re.compile("(?i)GPU is lost|fallen off the bus|not found|no devices were found|reset")


class NvidiaSmi:
    """Answers from the command."""

    judges = True
    pids_are_ours = False

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.trouble = ""

    @staticmethod
    def is_here() -> bool:
        """Whether there is such a command at all."""
        return shutil.which(PROGRAM) is not None

    def gpus(self) -> list[Gpu]:
        """List the devices; one that doesn't answer is left out and named."""
        found: list[Gpu] = []
        rows = self._rows("--query-gpu=" + FIELDS, FIELDS.count(",") + 1)
        parts = self._parts() if any(row[-1] == "Enabled" for row in rows) else {}
        for row in rows:
            index, uuid, name, total, _, _, mig = row
            size = mib(total)
            if mig == "Enabled" and index.isdigit():
                found += self._cut(int(index), uuid, parts)
            elif size is None or not index.isdigit():
                self.trouble = f"GPU {index}: {total}"
            else:
                found.append(Gpu(int(index), uuid, name, size))
        return found

    def _cut(self, index: int, uuid: str, parts: dict[str, Instance]) -> list[Gpu]:
        """The instances of one GPU."""
        mine = {each: part for each, part in parts.items() if part.gpu == uuid}
        if any(part.memory is None for part in mine.values()):
            self.trouble = f"GPU {index}: {PROGRAM} doesn't tell how large its MIG instances are"
        elif not mine:
            none = f"GPU {index} is in MIG mode, and {PROGRAM} lists no instance of it"
            self.trouble = self.trouble or none
        return [
            Gpu(index, each, part.name, part.memory.total_bytes)
            for each, part in mine.items()
            if part.memory is not None
        ]

    def _parts(self) -> dict[str, Instance]:
        """Every MIG instance; none where it doesn't say, which is its trouble."""
        said = self._ask("-q", "-x")
        if "<nvidia_smi_log>" not in said:
            self.trouble = f"{PROGRAM}: {said.strip()[:200]}"
            return {}
        return mig_text.instances(self._ask("-L"), said)

    def links(self) -> list[Link]:
        """Return nothing: this form of its answers doesn't tell."""
        return []

    def read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        """Return the memory of each device now, or why it can't be told."""
        parts = [uuid for uuid in uuids if uuid.startswith(PART)]
        answers = self._read([uuid for uuid in uuids if uuid not in parts])
        return answers | self._read_parts(parts) if parts else answers

    def _read_parts(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        self.trouble = ""
        known = self._parts()
        missing = _mute(self.trouble or "isn't listed")
        untold = Mute(f"{PROGRAM} doesn't tell its memory")
        return {
            uuid: (known[uuid].memory or untold) if uuid in known else missing for uuid in uuids
        }

    def _read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        query = "--query-gpu=uuid,memory.total,memory.used,memory.free"
        answers: dict[str, Memory | Mute] = {}
        for uuid, *sizes in self._rows(query, 4, *_only(uuids)) if uuids else ():
            total, used, free = map(mib, sizes)
            if total is None or used is None or free is None:
                answers[uuid] = _mute(sizes[1])
            else:
                answers[uuid] = Memory(total, used, free)
        missing = [uuid for uuid in uuids if uuid not in answers]
        if missing and len(uuids) > 1 and LATE not in self.trouble:
            # One that is gone can spoil the answer about all.
            for uuid in missing:
                answers |= self._read([uuid])
        else:
            answers |= dict.fromkeys(missing, _mute(self.trouble or "isn't listed"))
        return answers

    def users(self, uuid: str) -> list[User]:
        """Return the processes that compute on a device."""
        if uuid.startswith(PART):
            part = self._parts().get(uuid)
            return list(part.users) if part is not None else []
        rows = self._rows("--query-compute-apps=pid,used_memory", 2, *_only([uuid]))
        return [User(int(pid), mib(used)) for pid, used in rows if pid.isdigit()]

    def minor(self, uuid: str) -> int | None:
        """Return the N of /dev/nvidiaN, from what it writes for people."""
        found = re.search(r"Minor Number\s*:\s*([0-9]+)", self._ask("-q", *_only([uuid])))
        return int(found[1]) if found else None

    def listen(self, uuids: Collection[str]) -> None:
        """Return nothing: it tells of no errors when they happen."""

    def close(self) -> None:
        """Nothing is open."""

    def _rows(self, query: str, width: int, *more: str) -> list[list[str]]:
        """The lines that have as many columns as were asked for; the others are its troubles."""
        self.trouble = ""
        rows = []
        for line in self._ask(query, "--format=csv,noheader,nounits", *more).splitlines():
            row = [each.strip() for each in line.split(",")]
            if len(row) == width:
                rows.append(row)
            elif line.strip():
                self.trouble = f"{PROGRAM}: {line.strip()[:200]}"
        return rows

    def _ask(self, *arguments: str) -> str:
        try:
            asked = subprocess.Popen(
                [shutil.which(PROGRAM) or PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            return f"can't be run: {error.strerror}"
        try:
            said, _ = asked.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            _end(asked)
            return f"{LATE} {self._timeout_s:g} s"
        return said.decode("utf-8", "replace")


def _end(late: subprocess.Popen[bytes]) -> None:
    """Kill it, and wait for nothing: where the driver hangs, so may its end."""
    assert late.stdout is not None
    late.stdout.close()
    with contextlib.suppress(OSError):
        held = os.pidfd_open(late.pid)
        prctl.pidfd_send_signal(held, signal.SIGKILL)
        os.close(held)


def _only(uuids: Collection[str]) -> list[str]:
    return ["--id=" + ",".join(uuids)]


def _mute(text: str) -> Mute:
    return Mute(text, lost=_LOST.search(text) is not None)
