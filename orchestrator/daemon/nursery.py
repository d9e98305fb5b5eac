"""The zygotes: one bare for commands and light workers, one with vLLM's imports made.

The bare one starts with the daemon. The other starts as soon as a topology needs it, beside
validation and placement, because its imports take ten seconds and more; then it is kept, since the
imports it holds are what makes a restart quick. Zygotes of a daemon that died are ended before
anything else is looked at: a spawn that was on its way must not slip in behind the scan.
"""

import asyncio
import contextlib
import os
import sys

from orchestrator.core.worker_env import zygote_env
from orchestrator.host import cgroup, fault_points
from orchestrator.host.reaper import Reaper
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.host.zygote_link import ZygoteError, ZygoteLink

PRELOADS = {"bare": "", "vllm": "workers.vllm.preload:preload"}
CLOSE_S = 2.0


class Nursery:
    """Zygotes by profile."""

    def __init__(self, run_dir: RunDir, state_dir: StateDir, reaper: Reaper) -> None:
        self._run_dir = run_dir
        self._state_dir = state_dir
        self._reaper = reaper
        self._links: dict[str, ZygoteLink] = {}

    async def end_old(self) -> None:
        """End what earlier daemons started; ZygoteError names one that won't go."""
        stubborn = await asyncio.to_thread(self._run_dir.kill_zygotes)
        if stubborn:
            pids = ", ".join(str(zygote.pid) for zygote in stubborn)
            raise ZygoteError(f"a zygote of an earlier daemon can't be killed: pid {pids}")

    def zygote(self, profile: str) -> ZygoteLink:
        """The zygote of this profile, started now if it wasn't."""
        link = self._links.get(profile)
        if link is None:
            log = self._state_dir.zygote_log(profile)
            link = ZygoteLink(self._reaper, self._run_dir.record_zygote, log)
            env = zygote_env(os.environ, profile) | fault_points.passed_on()
            link.start(
                profile, sys.executable, env, [str(self._run_dir.code)], PRELOADS[profile],
                home=cgroup.home() if profile == "bare" else "",
            )  # fmt: skip
            self._links[profile] = link
        return link

    async def close(self) -> None:
        """Let them end, and wait a moment until they have: nothing may be left."""
        pids = [link.pid for link in self._links.values() if link.pid]  # 0: it died before
        for link in self._links.values():
            link.close()
        await asyncio.gather(*(_gone(pid) for pid in pids))
        with contextlib.suppress(OSError):  # else the next daemon forgets them
            self._run_dir.forget_dead_zygotes()


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
