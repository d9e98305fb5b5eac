"""The zygotes: one bare for commands and light workers, one with vLLM's imports made.

The bare one starts with the daemon. The other starts as soon as a topology needs it, beside
validation and placement, because its imports take ten seconds and more; then it is kept, since the
imports it holds are what makes a restart quick. Each other interpreter that a topology names has a
zygote of its own, for each engine that it runs; it goes when nothing that is up names it any more.
Zygotes of a daemon that died are ended before anything else is looked at: a spawn that was on its
way must not slip in behind the scan.
"""

import asyncio
import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Collection
from functools import partial

from orchestrator.core.worker_env import zygote_env
from orchestrator.host import cgroup, fault_points
from orchestrator.host.reaper import Reaper
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.host.zygote_link import ZygoteError, ZygoteLink

PRELOADS = {
    "bare": "",
    "sim": "workers.runtime.interpreter:sim",
    "vllm": "workers.vllm.preload:preload",
}
CLOSE_S = 2.0

Lineage = tuple[str, str]
"""A profile, and the interpreter if it isn't ours."""


class Nursery:
    """Zygotes by profile and interpreter.

    `tell` is told of each that is ready, with details. `wanted()`: from which of them anything may
    yet be born; None while that can't be said.
    """

    def __init__(
        self,
        run_dir: RunDir,
        state_dir: StateDir,
        reaper: Reaper,
        tell: Callable[[dict[str, str]], None] = lambda _: None,
        wanted: Callable[[], Collection[Lineage] | None] = lambda: None,
    ) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._reaper = reaper
        self._tell = tell
        self._wanted = wanted
        self._links: dict[Lineage, ZygoteLink] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._reviewing = False

    async def end_old(self) -> None:
        """End what earlier daemons started; ZygoteError names one that won't go."""
        stubborn = await asyncio.to_thread(self._run_dir.kill_zygotes)
        if stubborn:
            pids = ", ".join(str(zygote.pid) for zygote in stubborn)
            raise ZygoteError(f"a zygote of an earlier daemon can't be killed: pid {pids}")

    def zygote(self, profile: str, python: str = "") -> ZygoteLink:
        """The zygote of this profile, started now if it wasn't.

        `python`: another interpreter than ours. ZygoteError when it can't even be executed.
        """
        link = self._links.get((profile, python))
        if link is None:
            log = self._state_dir.zygote_log(profile + (f"-{digest(python)}" if python else ""))
            link = ZygoteLink(self._reaper, self._run_dir.record_zygote, log)
            env = zygote_env(os.environ, profile, python) | fault_points.passed_on()
            command, home = python or sys.executable, cgroup.home() if profile == "bare" else ""
            link.start(profile, command, env, [self._code()], PRELOADS[profile], home=home)
            self._links[profile, python] = link
            if PRELOADS[profile]:
                told = partial(self._told, profile, command, link)
                link.until_ready().add_done_callback(told)
        return link

    def _code(self) -> str:
        """Where it imports us from."""
        try:
            return str(self._run_dir.make_code())
        except OSError as error:
            where = error.filename or self._run_dir.code
            raise ZygoteError(f"cannot write to {where}: {error.strerror}") from error

    def _told(
        self, profile: str, command: str, link: ZygoteLink, done: "asyncio.Future[None]"
    ) -> None:
        """Say what was found; that nothing was is said by whoever needs it."""
        if not done.cancelled() and done.exception() is None:
            took = f"{link.preload_s:.1f} s"
            self._tell({"interpreter": command, "engine": profile, "took": took, **link.versions})

    def review(self) -> None:
        """Let other interpreters go that nothing names any more: once, in the next loop pass."""
        if not self._reviewing and any(python for _, python in self._links):
            self._reviewing = True
            asyncio.get_running_loop().call_soon(self._review)

    def _review(self) -> None:
        self._reviewing = False
        wanted = self._wanted()
        if wanted is None:
            return
        for lineage in [each for each in self._links if each[1] and each not in wanted]:
            self._let_go(self._links.pop(lineage))

    def _let_go(self, link: ZygoteLink) -> None:
        pid = link.pid  # 0: it died before
        link.close()
        if pid:
            leaving = asyncio.get_running_loop().create_task(_gone(pid))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Let them end, and wait a moment until they have: nothing may be left."""
        while self._links:
            self._let_go(self._links.popitem()[1])
        await asyncio.gather(*self._leaving)
        with contextlib.suppress(OSError):  # else the next daemon does it
            self._run_dir.forget_dead_zygotes()
            self._run_dir.remove_code()


def digest(python: str) -> str:
    """A short name for an interpreter's path."""
    return f"{zlib.crc32(python.encode()):08x}"


async def _gone(pid: int) -> None:
    """Wait, at most CLOSE_S, until a child of ours is dead."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    dead = asyncio.Event()
    loop.add_reader(pidfd, dead.set)
    try:
        await asyncio.wait_for(dead.wait(), CLOSE_S)
    except TimeoutError:
        os.kill(pid, 9)  # our own child, not reaped yet: nobody else can have this pid
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
