"""What holds a worker's tree together, so that all of it can be found and killed.

    walk     nothing but the shim: whoever loses its parent becomes the shim's child. Everywhere.
    cgroup   the walk, and a control group that knows the tree even when the shim is dead.
    pidns    the walk, and a PID namespace that dies with its first process (see `nest`).

The shim uses them all in the same way; what differs is how main is forked, and what is done when
forks outrun the kill: whole process groups, the whole control group, the whole namespace.
"""

import os

from orchestrator.host import cgroup, procfs, tree

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself would cost every shim its pages
    from orchestrator.host.spawn import Spawn

KINDS = ("walk", "cgroup", "pidns")


class Walk:
    """Nothing is added to what the kernel does for every subreaper.

    `parent`: main's parent as main sees it. `news`: a descriptor that tells of main's end, where
    main isn't our own child; else -1.
    """

    group = ""

    def __init__(self) -> None:
        self.parent = 0
        self.news = -1

    def prepare(self) -> None:
        """Make what is needed; OSError says why it can't be had."""
        self.parent = os.getpid()

    def fork(self) -> int:
        """Fork main: its pid, and 0 in main. OSError when nobody can be forked."""
        return os.fork()

    def embrace(self, main: int) -> None:
        """Hold a main that was forked before we were, and runs now."""

    def present(self) -> list[procfs.Stat]:
        """Whom one walk finds, zombies included: enough where nobody is to be killed."""
        return procfs.descendants(os.getpid())

    def members(self) -> list[procfs.Stat]:
        """Everybody of the tree who is there now, zombies included."""
        return tree.of_shim(os.getpid())

    def storm(self, members: list[procfs.Stat]) -> None:
        """Kill more of the tree at once than one by one, whoever `members` has missed."""
        tree.kill_groups(members)

    def read_news(self) -> int | None:
        """Return main's wait status, where `news` tells it and has."""
        return None

    def close(self) -> None:
        """Remove what `prepare` made; the tree is empty."""


class Group(Walk):
    """A control group of the tree's own, at a path that didn't exist before.

    A command is born in it; `executes` says that main is one. Where that can't be had, and for
    main that goes on in this image, see `cgroup`. A group that can't be had at this moment isn't
    worth a failed start: the walk goes on alone, and the shim's last words say why.
    """

    def __init__(self, path: str, *, executes: bool, made: bool = False) -> None:
        super().__init__()
        self.group = path
        self._executes = executes
        self._made = made

    def prepare(self) -> None:
        """Make the group, unless main waits in it already."""
        super().prepare()
        if self._made:
            return
        try:
            cgroup.make(self.group)
        except OSError as error:
            self._do_without(error)

    def fork(self) -> int:
        """Fork main into the group, or put it there from outside: it waits for nothing."""
        if self._executes and self.group:
            try:
                return cgroup.fork_into(self.group)
            except OSError:
                self._executes = False  # not had here
        main = os.fork()
        if main:
            self.embrace(main)
        return main

    def embrace(self, main: int) -> None:
        """Put main into the group."""
        if self.group and not self._made:
            try:
                cgroup.add(self.group, main)
            except OSError as error:
                self._do_without(error)

    def members(self) -> list[procfs.Stat]:
        """Whom the walk finds, and whom the group lists."""
        found = super().members()
        known = {one.pid for one in found}
        more = cgroup.members(self.group) - known if self.group else ()
        return found + [one for one in map(procfs.stat, more) if one is not None]

    def storm(self, members: list[procfs.Stat]) -> None:
        """Kill the control group, and the process groups for those who slipped out of it."""
        if self.group:
            cgroup.kill(self.group)
        super().storm(members)

    def close(self) -> None:
        """Remove the group."""
        if self.group:
            cgroup.remove(self.group)

    def _do_without(self, error: OSError) -> None:
        if self.group:
            cgroup.remove(self.group)
        self.group = ""
        os.write(2, f"no control group, so the walk alone: {error}\n".encode())


def of(spawn: "Spawn", made: str = "") -> Walk:
    """Return what this worker is to be held together by. `made`: the group that its main is in."""
    if spawn.tree == "cgroup":
        return Group(made or spawn.group, executes=bool(spawn.argv), made=bool(made))
    if spawn.tree == "pidns":
        from orchestrator.host import nest  # noqa: PLC0415 - only who asks for it pays its pages

        return nest.Nest(spawn.life)
    return Walk()


def rehearse() -> None:
    """Go through a birth that can't come about, for the zygote: there is no such group."""
    group = Group("/dev/null/rehearsal", executes=True)
    try:
        cgroup.make(group.group)
    except OSError:
        try:
            cgroup.fork_into("/proc/self")
        except OSError:
            return
