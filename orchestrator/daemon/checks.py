"""Running an operator's check command: one short life of its own, below a shim.

So whatever the command forks is owned, bounded and ended like a worker's tree, by the same code:
the shim kills it all when the time is up, also when there is no daemon any more. It has the
environment and the directory of the process that it asks about, but isn't a part of its tree.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.diagnosis import describe_status, seconds
from orchestrator.core.log_lines import last_line
from orchestrator.core.probe import Probe
from orchestrator.core.worker_env import PrivateDirs, worker_env
from orchestrator.daemon.unit import Unit
from orchestrator.host.orphans import end_orphans
from orchestrator.host.reaper import Reaper
from orchestrator.host.records import ShimEvent, ShimLost, TreeEmpty
from orchestrator.host.rundir import RunDir
from orchestrator.host.shim_link import ShimLink
from orchestrator.host.spawn import Spawn
from orchestrator.host.tagged import make_nonce
from orchestrator.host.zygote_link import ZygoteError, ZygoteLink
from orchestrator.wire.ids import LifeId

OUTPUT_BYTES_MAX = 64 << 10
CLOSE_S = 3.0


class Check:
    """One run of a command. `over` is set when nothing of it is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.over: asyncio.Future[TreeEmpty] = asyncio.get_running_loop().create_future()
        self.link: ShimLink | None = None
        self.unwanted = False

    def abandon(self) -> None:
        """Nobody waits for it any more: kill it, now or as soon as it is born."""
        self.unwanted = True
        if self.link is not None:
            self.link.kill()


class Checks:
    """All that run now, each until its tree is empty."""

    def __init__(
        self, run_dir: RunDir, zygotes: Callable[[str], ZygoteLink], reaper: Reaper
    ) -> None:
        self._run_dir = run_dir
        self._zygotes = zygotes
        self._reaper = reaper
        self._running: set[Check] = set()

    async def ask(self, unit: Unit, life: LifeId, probe: Probe) -> str:
        """Run a check to its end; empty when it exited with 0. Cancelled, it is killed."""
        try:
            check = Check(self._run_dir.make_probe())
            spawn = self._spawn(unit, life, probe, check.directory)
            born = self._zygotes("bare").spawn(spawn)
        except (OSError, ZygoteError) as error:
            return f"can't be run: {error}"
        self._running.add(check)
        born.add_done_callback(lambda done: self._born(check, done))
        try:
            record = await asyncio.shield(check.over)
        except ZygoteError as error:
            return f"can't be run: {error}"
        except asyncio.CancelledError:
            check.abandon()
            raise
        return _told(record, probe)

    def _spawn(self, unit: Unit, life: LifeId, probe: Probe, directory: Path) -> Spawn:
        planned = unit.spec.members[life.member]
        nonce = make_nonce(self._run_dir.root, str(life))
        private = str(self._run_dir.life(life) / "t")
        env = worker_env(
            os.environ, engine=planned.engine, added=planned.env, life=life, nonce=nonce,
            dirs=PrivateDirs(tmp=private, rpc=private),
        )  # fmt: skip
        return Spawn(
            life=str(life), nonce=nonce, directory=str(directory), env=env, argv=list(probe.argv),
            log_path=str(directory / "log"), log_max_bytes=OUTPUT_BYTES_MAX, log_backups=0,
            cwd=planned.cwd or unit.spec.cwd, linger_s=0.0, lifetime_s=probe.timeout_s,
        )  # fmt: skip

    def _born(self, check: Check, done: "asyncio.Future[int]") -> None:
        error = done.exception()
        if isinstance(error, ZygoteError):
            self._end(check, error)
            return
        if error is not None:
            raise error
        check.link = ShimLink.connect(check.directory, lambda event: self._heard(check, event))
        if check.unwanted:
            check.link.kill()

    def _heard(self, check: Check, event: ShimEvent) -> None:
        if isinstance(event, TreeEmpty):
            self._end(check, event)
        elif isinstance(event, ShimLost):
            end_orphans(event.record, self._reaper, lambda record: self._end(check, record))

    def _end(self, check: Check, what: TreeEmpty | ZygoteError) -> None:
        self._running.discard(check)
        self._run_dir.remove_probe(check.directory)
        if check.over.done():
            return
        if isinstance(what, TreeEmpty):
            check.over.set_result(what)
        else:
            check.over.set_exception(what)
            check.over.exception()  # whoever asked may be gone: then nobody reads it, and may

    async def close(self) -> None:
        """Kill what runs, and wait a moment until it is gone."""
        for check in self._running:
            check.abandon()
        over = [check.over for check in self._running]
        if over:
            await asyncio.wait(over, timeout=CLOSE_S)


def _told(record: TreeEmpty, probe: Probe) -> str:
    if record.exec_error is not None:
        return record.exec_error.text
    if record.status == 0:
        return ""
    if record.killed and record.status == 9:
        return f"didn't end within {seconds(probe.timeout_s)} and was killed"
    line = last_line(record.tail)
    how = describe_status(record.status).replace("main process ", "").replace(" (not by us)", "")
    return f"{how}: {line}" if line else how
