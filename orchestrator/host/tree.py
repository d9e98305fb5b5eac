"""Killing a whole process tree, so that not one of it is left.

Passes: collect who is there, kill everybody who isn't doomed yet, look again. A process with a
pending SIGKILL can't fork any more, so a pass that finds nobody new means that all are doomed, and
what remains is to wait for the kernel. A pass never waits; its caller does that, in its own loop.

Python's `multiprocessing.resource_tracker` is spared for a moment: once the others are gone it
unlinks the shared memory of its family by itself. When forks outrun the passes, more is killed at
once: whole process groups (the kernel does that under the lock that every fork needs, so nobody
slips through, trackers included), or whatever else holds the tree together, see `enclosure`.

Some never stand still: they fork and exit so fast that no look at /proc finds one alive. They
can't hide their dead. A zombie that we haven't reaped keeps its group's number, and its successor
is in that group. So a pass over a tree that isn't empty, which finds nobody alive, counts as one
that was outrun.

Nobody else is ever hit. A victim is pinned by a pidfd first and only then looked at again: it is
killed if it is still the process that was found (same start time). A group is signalled only while
a member of the tree, be it a dead one, is in it; and groups can't reach beyond a tree's sessions.
"""

import enum
import os
import signal
from collections.abc import Callable

from orchestrator.host import prctl, procfs
from orchestrator.host.shm import Leftovers

SPARE_S = 2.0
"""What resource trackers get; they need about half a second after the others are gone."""

STORM_PASSES = 2
"""After so many passes in a row with somebody new, whole groups are signalled."""

STORM_CROWD = 64
"""So many new ones in one pass after the first are a storm as well."""

NOTED_MAX = 256
"""Processes whose shared memory is noted; a storm of more has none worth the time."""

TRACKER = b"multiprocessing.resource_tracker"


class Outcome(enum.Enum):
    """What became of one attempt."""

    KILLED = "killed"
    GONE = "gone before it could be hit"
    REFUSED = "not ours to kill"


class TreeKill:
    """One killing, from the first pass to the last.

    `began`: the caller's monotonic time. `storm`: what to do with the members when forks outrun
    the passes. `killed`: how many were sent a SIGKILL. `stuck`: those still alive after the last
    pass, doomed or spared.
    """

    def __init__(
        self,
        leftovers: Leftovers,
        began: float,
        storm: Callable[[list[procfs.Stat]], None] | None = None,
    ) -> None:
        self.killed = 0
        self._storm = storm or kill_groups
        self.stuck: list[procfs.Stat] = []
        self._leftovers = leftovers
        self._spare_until = began + SPARE_S
        self._doomed: set[tuple[int, int]] = set()
        self._noted: set[tuple[int, int]] = set()
        self._restless = 0

    def run_pass(self, members: list[procfs.Stat], now: float) -> int:
        """Kill everybody of `members` who may live no longer.

        Returns how many were new: hit, gone before they could be hit, or found dead though nobody
        had killed them. 0 with `stuck` not empty: wait for a death, or for the trackers' end.
        """
        alive = [one for one in members if one.alive]
        self._note(alive)
        outcomes = [self._hit(one) for one in alive if not self._is_left_alone(one, now)]
        hit = outcomes.count(Outcome.KILLED)
        new = hit + outcomes.count(Outcome.GONE) + self._new_dead(members)
        self.killed += hit
        self._restless = self._restless + 1 if new or not alive else 0
        if self._restless > STORM_PASSES or (self._restless > 1 and hit > STORM_CROWD):
            self._storm(members)
        self.stuck = alive
        return new

    def _hit(self, one: procfs.Stat) -> Outcome:
        outcome = kill_exactly(one)
        if outcome is Outcome.KILLED:
            self._doomed.add((one.pid, one.starttime))
        return outcome

    def _new_dead(self, members: list[procfs.Stat]) -> int:
        dead = {(one.pid, one.starttime) for one in members if not one.alive} - self._doomed
        self._doomed |= dead
        return len(dead)

    def _is_left_alone(self, one: procfs.Stat, now: float) -> bool:
        return (one.pid, one.starttime) in self._doomed or self._spares(one, now)

    def _spares(self, one: procfs.Stat, now: float) -> bool:
        return now < self._spare_until and TRACKER in procfs.cmdline(one.pid)

    def _note(self, alive: list[procfs.Stat]) -> None:
        for one in alive:
            identity = (one.pid, one.starttime)
            if len(self._noted) < NOTED_MAX and identity not in self._noted:
                self._noted.add(identity)
                self._leftovers.note(one.pid)
        self._leftovers.keep()


def kill_exactly(one: procfs.Stat, number: int = signal.SIGKILL) -> Outcome:
    """Signal this very process, and never another one that has its pid now."""
    try:
        pidfd = prctl.pidfd_open(one.pid)
    except OSError:
        return Outcome.GONE
    try:
        now = procfs.stat(one.pid)
        if now is None or now.starttime != one.starttime or not now.alive:
            return Outcome.GONE
        prctl.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return Outcome.GONE
    except OSError:
        return Outcome.REFUSED
    finally:
        os.close(pidfd)
    return Outcome.KILLED


def kill_groups(members: list[procfs.Stat]) -> None:
    """SIGKILL every process group that one of these is in, except our own."""
    ours = os.getpgrp()
    for pgid in {one.pgid for one in members} - {ours, 0}:
        try:
            os.killpg(pgid, signal.SIGKILL)
        except OSError:
            continue


def of_shim(pid: int) -> list[procfs.Stat]:
    """Collect a living shim's tree: its descendants, and whoever is in its session.

    Everything that loses its parent in there becomes the shim's own child, so the walk finds all;
    the session catches what forked while we walked.
    """
    everything = procfs.every()
    found = {one.pid: one for one in procfs.below({pid}, everything)}
    for one in everything.values():
        if one.sid == pid and one.pid != pid:
            found.setdefault(one.pid, one)
    return list(found.values())


def describe(stuck: list[procfs.Stat]) -> str:
    """Say who won't go: pid, name, state and what the kernel says it waits in."""
    words = []
    for one in stuck[:8]:
        channel = procfs.wait_channel(one.pid)
        where = f" in {channel}" if channel else ""
        words.append(f"{one.pid} ({one.name}) state {one.state}{where}")
    more = f" and {len(stuck) - 8} more" if len(stuck) > 8 else ""
    return ", ".join(words) + more
