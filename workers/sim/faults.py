"""Faults on demand: what a supervisor must survive, at a moment that a test can name.

Each fault strikes once per life: during the start, with the Nth request, when N tokens have been
produced, or in the middle of the Nth transfer of KV blocks. The incarnation in the life's name
decides whether it still holds, so a test can say "crashes twice, then runs"; the member in it
decides whom of a gang it strikes.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Literal

import msgspec

from orchestrator.wire.ids import LifeId
from workers.sim.options import Fault, FaultName

FOREVER_S = "2147483647"
Fate = Literal["", "fail", "stall"]
"""What becomes of a transfer."""
# What has no meaning during the start strikes at the first opportunity.
_AT_FIRST = {
    "drop-answer": "after_requests",
    "transfer-fail": "after_transfers",
    "transfer-stall": "after_transfers",
}


def _when(fault: Fault) -> Fault:
    given = fault.after_requests or fault.after_tokens or fault.after_transfers
    at_first = _AT_FIRST.get(fault.fault)
    return msgspec.structs.replace(fault, **{at_first: 1}) if at_first and not given else fault


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
        mine = LifeId.parse(life)
        self._pending = [_when(fault) for fault in faults if _concerns(fault, mine)]
        self._requests = 0
        self._transfers = 0
        self._drops = False
        self._fate: Fate = ""
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
            "drop-answer": self._drop_answer,
            "transfer-fail": self._transfer_fail,
            "transfer-stall": self._transfer_stall,
        }

    async def on_start(self) -> None:
        """Strike what strikes during the start."""
        for fault in list(self._pending):
            if not (fault.after_requests or fault.after_tokens or fault.after_transfers):
                if fault.fault == "slow-start":
                    await asyncio.sleep(fault.seconds)
                self._strike(fault)

    def on_request(self, total: int) -> bool:
        """Count a client's request, before it is looked at; `total` tokens until now.

        False: its answer is to be lost.
        """
        self._drops = False
        if not self._requests:
            # What came before was the canary's.
            self._tokens_before = total
        self._requests += 1
        for fault in list(self._pending):
            if fault.after_requests is not None and self._requests >= fault.after_requests:
                self._strike(fault)
        return not self._drops

    def on_transfer(self) -> Fate:
        """Count a transfer that has begun, and say what becomes of it."""
        self._transfers += 1
        self._fate = ""
        for fault in list(self._pending):
            if fault.after_transfers is not None and self._transfers >= fault.after_transfers:
                self._strike(fault)
        return self._fate

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

    def _drop_answer(self, _fault: Fault) -> None:
        self._drops = True

    def _transfer_fail(self, _fault: Fault) -> None:
        self._fate = "fail"

    def _transfer_stall(self, _fault: Fault) -> None:
        self._fate = "stall"
