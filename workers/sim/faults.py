"""Faults on demand: what a supervisor must survive, at a moment that a test can name.

Each fault strikes once per life: during the start, with the Nth request, or when N tokens have
been produced. The incarnation in the life's name decides whether it still holds, so a test can say
"crashes twice, then runs"; the member in it decides whom of a gang it strikes.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from orchestrator.wire.ids import LifeId
from workers.sim.options import Fault, FaultName

FOREVER_S = "2147483647"


def _concerns(fault: Fault, life: LifeId) -> bool:
    over = fault.times is not None and life.incarnation > fault.times
    return not over and fault.member in (None, life.member)


class Faults:
    """The faults of one life. `die` and `freeze` are what the engine does for its own part."""

    def __init__(
        self,
        faults: list[Fault],
        life: str,
        die: Callable[[str], None],
        freeze: Callable[[bool], None],
    ) -> None:
        self._pending = [fault for fault in faults if _concerns(fault, LifeId.parse(life))]
        self._requests = 0
        self._tokens_before = 0
        self._die = die
        self._freeze = freeze
        self._kept: list[object] = []
        # `log` and `slow-start` have no more to do than what every fault may.
        self._acts: dict[FaultName, Callable[[Fault], None]] = {
            "crash": self._crash,
            "exit-0": self._exit_0,
            "hang": self._hang,
            "engine-hang": self._engine_hang,
            "engine-stall": self._engine_stall,
            "engine-death": self._engine_death,
            "ignore-term": self._ignore_term,
            "leak-child": self._leak_child,
            "leak-daemon": self._leak_daemon,
            "allocate": self._allocate,
        }

    async def on_start(self) -> None:
        """Strike what strikes during the start."""
        for fault in list(self._pending):
            if fault.after_requests is None and fault.after_tokens is None:
                if fault.fault == "slow-start":
                    await asyncio.sleep(fault.seconds)
                self._strike(fault)

    def on_request(self, total: int) -> None:
        """Count a client's request, before it is looked at; `total` tokens until now."""
        if not self._requests:
            # What came before was the canary's.
            self._tokens_before = total
        self._requests += 1
        for fault in list(self._pending):
            if fault.after_requests is not None and self._requests >= fault.after_requests:
                self._strike(fault)

    def on_tokens(self, total: int) -> None:
        """Note how many tokens were generated; the clients' are counted."""
        if not self._requests:
            return
        for fault in list(self._pending):
            if fault.after_tokens is not None and total - self._tokens_before >= fault.after_tokens:
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        self._pending.remove(fault)
        if fault.line:
            sys.stderr.write(fault.line + "\n")
            sys.stderr.flush()
        act = self._acts.get(fault.fault)
        if act is not None:
            act(fault)

    def _crash(self, fault: Fault) -> None:
        if fault.signal:
            os.kill(os.getpid(), fault.signal)
        os._exit(1)

    def _exit_0(self, _fault: Fault) -> None:
        os._exit(0)

    def _hang(self, _fault: Fault) -> None:
        threading.Event().wait()

    def _engine_hang(self, _fault: Fault) -> None:
        self._freeze(True)

    def _engine_stall(self, _fault: Fault) -> None:
        self._freeze(False)

    def _engine_death(self, fault: Fault) -> None:
        self._die(fault.line or "the simulated engine died, as it was told to")

    def _ignore_term(self, _fault: Fault) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _leak_child(self, _fault: Fault) -> None:
        self._kept.append(subprocess.Popen(["/bin/sh", "-c", f"exec sleep {FOREVER_S}"]))

    def _leak_daemon(self, _fault: Fault) -> None:
        # The shell leads the new session and is gone at once; what it started has no parent left.
        command = ["/bin/sh", "-c", f"sleep {FOREVER_S} &"]
        subprocess.run(command, start_new_session=True, check=True)

    def _allocate(self, fault: Fault) -> None:
        # Not zeros: those would be promised by the kernel, not given.
        self._kept.append(bytearray(b"\x01") * fault.bytes)
