"""Running something short that answers a question: one life of its own, below a shim.

That is an operator's check command, or an entry function that says what only its imports can. So
whatever it forks is owned, bounded and ended like a worker's tree, by the same code: the shim kills
it all when the time is up, also when there is no daemon any more. A check command has the
environment and the directory of the process that it asks about, but isn't a part of its tree.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.diagnosis import describe_status, seconds
from orchestrator.core.log_lines import last_line
from orchestrator.core.plan import PlannedWorker
from orchestrator.core.probe import Probe
from orchestrator.core.worker_env import PrivateDirs, worker_env
from orchestrator.daemon import births
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
ANSWER_ENV = "DYNORCH_ANSWER"
"""Names the file that an entry function writes its answer into."""
ANSWER_BYTES_MAX = 1 << 20
CLOSE_S = 3.0


class Check:
    """One run. `over` is set when nothing of it is left, `answer` what it has written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.over: asyncio.Future[TreeEmpty] = asyncio.get_running_loop().create_future()
        self.link: ShimLink | None = None
        self.unwanted = False
        self.answer = b""

    def abandon(self) -> None:
        """Nobody waits for it any more: kill it, now or as soon as it is born."""
        self.unwanted = True
        if self.link is not None:
            self.link.kill()


class Checks:
    """All that run now, each until its tree is empty."""

    def __init__(
        self, run_dir: RunDir, zygote: Callable[[str], ZygoteLink], reaper: Reaper
    ) -> None:
        self._run_dir = run_dir
        self._zygote = zygote
        self._reaper = reaper
        self._running: set[Check] = set()

    async def ask(self, unit: Unit, life: LifeId, probe: Probe) -> str:
        """Run a check to its end; empty when it exited with 0. Cancelled, it is killed."""
        try:
            check = Check(self._run_dir.make_probe())
            spawn = self._spawn(unit, life, probe, check.directory)
            record = await self._run(check, self._zygote("bare"), spawn)
        except (OSError, ZygoteError) as error:
            return f"can't be run: {error}"
        return _told(record, probe)

    async def question(
        self,
        zygote: ZygoteLink,
        entry: str,
        blob: bytes,
        *,
        planned: PlannedWorker,
        cwd: str,
        limit_s: float,
    ) -> bytes:
        """Call an entry function in a fork of a zygote, in the environment of a worker to be.

        Returns what it wrote into the file that `ANSWER_ENV` names; empty: nothing. ZygoteError,
        OSError: it couldn't be called. Cancelled, it is killed.
        """
        check = Check(self._run_dir.make_probe())
        where = str(check.directory)
        life = LifeId.parse(f"{planned.id}#0")
        nonce = make_nonce(self._run_dir.root, where)
        env = worker_env(
            os.environ, engine=planned.engine, added=planned.env, life=life, nonce=nonce,
            dirs=PrivateDirs(tmp=where, rpc=where), python=planned.python or "",
        )  # fmt: skip
        spawn = Spawn(
            life=str(life), nonce=nonce, directory=where, env=env | {ANSWER_ENV: f"{where}/answer"},
            entry=entry, blob=blob, path=births.path_of(planned), log_path=f"{where}/log",
            log_max_bytes=OUTPUT_BYTES_MAX, log_backups=0, cwd=cwd, linger_s=0.0,
            lifetime_s=limit_s,
        )  # fmt: skip
        await self._run(check, zygote, spawn)
        return check.answer

    async def _run(self, check: Check, zygote: ZygoteLink, spawn: Spawn) -> TreeEmpty:
        born = zygote.spawn(spawn)
        self._running.add(check)
        born.add_done_callback(lambda done: self._born(check, done))
        try:
            return await asyncio.shield(check.over)
        except asyncio.CancelledError:
            check.abandon()
            raise

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
        with contextlib.suppress(OSError), (check.directory / "answer").open("rb") as answer:
            check.answer = answer.read(ANSWER_BYTES_MAX)
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
