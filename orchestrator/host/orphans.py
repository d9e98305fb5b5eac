"""What a killed shim leaves: found, killed, and reported empty.

Nothing stands above such processes any more, so they are looked for among all there are, by five
signs, each of which a worker's descendant can lose but hardly all at once: it is the recorded main
process; it is in the session that the shim led; its output goes into the shim's pipe; its
environment carries the tree's tag; or it is a child of this daemon that nobody owns (the kernel
gave it to us when the shim died). And whoever descends from one of those. Where the tree has a
control group, that names them all, and none of them can lose it.

The search is repeated until it twice finds nobody. The rest is as in the shim: see `tree`.
"""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestrator.host import cgroup, procfs, title, tree
from orchestrator.host.log_file import TAIL_BYTES
from orchestrator.host.reaper import Reaper
from orchestrator.host.records import LifeRecord, TreeEmpty
from orchestrator.host.shm import NAMES, Leftovers

PAUSE_S = 0.01
PAUSE_MAX_S = 1.0
STUCK_AFTER_S = 10.0
CALM_MAX = 50
"""So many passes over an empty tree wait for its control group to let itself be removed."""


class Search:
    """Looks for the processes of one lost life."""

    def __init__(self, record: LifeRecord, owned: Callable[[], set[int]]) -> None:
        self._record = record
        self._owned = owned
        self._tag = title.entry(record.tag)

    def members(self) -> list[procfs.Stat]:
        """Everybody of that life who is there now, zombies included."""
        listed = cgroup.members(self._record.group) if self._record.group else set()
        everything = procfs.every()
        roots = {one.pid for one in everything.values() if self._is_one(one, everything)}
        roots |= listed & everything.keys()
        below = procfs.below(roots, everything)
        return [everything[pid] for pid in roots] + below

    def hides_somebody(self) -> bool:
        """Whether the control group has a member, though none can be seen to stand still."""
        return bool(self._record.group and cgroup.members(self._record.group))

    def storm(self, members: list[procfs.Stat]) -> None:
        """Kill more of them at once than one by one."""
        if self._record.group:
            cgroup.kill(self._record.group)
        tree.kill_groups(members)

    def _is_one(self, one: procfs.Stat, everything: dict[int, procfs.Stat]) -> bool:
        me = os.getpid()
        if one.pid == me or one.pid in self._owned():
            return False
        return (
            self._is_main(one)
            or self._in_session(one, everything)
            or self._writes_to_pipe(one.pid)
            or procfs.environ_has(one.pid, self._tag)
            or (one.ppid == me and one.sid != os.getsid(0) and not self._has_another_tag(one.pid))
        )

    def _is_main(self, one: procfs.Stat) -> bool:
        main = self._record.main
        return main is not None and (one.pid, one.starttime) == (main.pid, main.starttime)

    def _in_session(self, one: procfs.Stat, everything: dict[int, procfs.Stat]) -> bool:
        """Tell by the session's number: the shim's pid, unless that is somebody else's by now."""
        shim = self._record.shim
        leader = everything.get(shim.pid)
        recycled = leader is not None and leader.starttime != shim.starttime
        return one.sid == shim.pid and one.starttime >= shim.starttime and not recycled

    def _writes_to_pipe(self, pid: int) -> bool:
        pipe = f"pipe:[{self._record.pipe}]"
        return any(procfs.link(f"/proc/{pid}/fd/{fd}") == pipe for fd in (1, 2))

    def _has_another_tag(self, pid: int) -> bool:
        """Spare the shim of a killed zygote: it is our child, too, but lives a life of its own."""
        environ = procfs.read(f"/proc/{pid}/environ", 1 << 20) or b""
        name = f"{title.TAG_NAME}=".encode()
        return name in environ and name + title.PLACEHOLDER.encode() not in environ


class Ending:
    """One lost life being ended, in the running loop."""

    def __init__(
        self,
        record: LifeRecord,
        owned: Callable[[], set[int]],
        on_empty: Callable[[TreeEmpty], None],
        on_stuck: Callable[[str], None] | None = None,
    ) -> None:
        self._record = record
        self._on_empty = on_empty
        self._on_stuck = on_stuck
        self._search = Search(record, owned)
        self._leftovers = Leftovers(record.started_wall, f"{record.directory}/{NAMES}")
        self._leftovers.recall()
        self._began = time.monotonic()
        self._kill = tree.TreeKill(self._leftovers, self._began, self._search.storm)
        self._calm = 0
        self._pause_s = PAUSE_S

    def begin(self) -> None:
        """Make the first pass at once; `on_empty` is called from the loop, never from here."""
        self._pass(first=True)

    def _pass(self, *, first: bool = False) -> None:
        now = time.monotonic()
        new = self._kill.run_pass(self._search.members(), now)
        loop = asyncio.get_running_loop()
        if self._kill.stuck:
            self._calm = 0
            self._pause_s = 0.0 if new else min(max(self._pause_s * 2, PAUSE_S), PAUSE_MAX_S)
            self._say_stuck(now)
            loop.call_later(min(self._pause_s, self._patience(now)), self._pass)
            return
        if self._search.hides_somebody():
            self._calm = 0
            self._search.storm([])
        self._calm += 1
        if self._calm < 2 or first:
            loop.call_soon(self._pass)
            return
        if self._record.group and not cgroup.remove(self._record.group) and self._calm < CALM_MAX:
            loop.call_later(PAUSE_S, self._pass)  # the kernel may take a moment over its dead
            return
        self._on_empty(self._record_of_end(now))

    def _patience(self, now: float) -> float:
        """Look often at first: the next life waits for this one's end."""
        return 0.05 if now < self._began + STUCK_AFTER_S else PAUSE_MAX_S

    def _say_stuck(self, now: float) -> None:
        if self._on_stuck is not None and now > self._began + STUCK_AFTER_S:
            self._on_stuck(tree.describe(self._kill.stuck))
            self._on_stuck = None

    def _record_of_end(self, now: float) -> TreeEmpty:
        fields = {name: getattr(self._record, name) for name in LifeRecord.__struct_fields__}
        return TreeEmpty(
            **fields,
            empty_at=now,
            killed=self._kill.killed,
            unlinked=self._leftovers.remove(),
            tail=_tail(Path(self._record.log)),
        )


def end_orphans(
    record: LifeRecord,
    reaper: Reaper,
    on_empty: Callable[[TreeEmpty], None],
    on_stuck: Callable[[str], None] | None = None,
) -> None:
    """Kill whatever is left of a life whose shim is dead, then call `on_empty` from the loop.

    The record has no status: nobody saw it. `on_stuck` is called once, with a sentence, if some of
    them won't die; the ending goes on all the same.
    """
    Ending(record, lambda: reaper.owned, on_empty, on_stuck).begin()


async def end_leftovers(lives: list[LifeRecord], reaper: Reaper) -> list[TreeEmpty]:
    """Do it for several lives, as a new daemon finds them; returns when all are empty.

    On another boot than the record's there is nothing to look for.
    """
    loop = asyncio.get_running_loop()
    boot = procfs.boot_id()
    endings: list[asyncio.Future[TreeEmpty]] = []
    for record in lives:
        done: asyncio.Future[TreeEmpty] = loop.create_future()
        if record.boot_id == boot:
            end_orphans(record, reaper, done.set_result)
        else:
            fields = msgspec.structs.asdict(record)
            done.set_result(TreeEmpty(**fields, tail=_tail(Path(record.log))))
        endings.append(done)
    return list(await asyncio.gather(*endings))


def _tail(log: Path) -> str:
    """Return the last of the log: most likely, but not surely, of that life."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
