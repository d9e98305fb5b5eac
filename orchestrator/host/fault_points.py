"""Named moments between two steps at which a daemon may die, so that each can be tried on purpose.

A crash-safe supervisor is one for which no moment is special. Random kills find the wide windows;
the narrow ones (saved but not done, done but not told) are a few microseconds, so they have names
here, and a test kills the daemon in exactly each of them. Some lie in a shim or a zygote: there the
daemon dies while the other process has got just so far.

Nothing of this happens in production: without the variable a point is one comparison. With it, the
file that it names says which point is armed, and for whom: "POINT PID", where PID 0 is the process
that comes by. It must be ours and nobody else may write it. It is removed when it fires, so it
fires once. No verb and no topology can set the variable (names that begin with DYNORCH_ are
refused in files); whoever sets a daemon's environment could as well kill it.
"""

import os
import select
import signal
import stat

VARIABLE = "DYNORCH_FAULT_POINTS"
DEATH_MS = 2000
BYTES_MAX = 200

POINTS = {
    "daemon.locked": "it is the daemon, and has looked at nothing yet",
    "daemon.serving": "its control socket is open, nobody was told so",
    "adoption.old-zygotes-ended": "nothing can be born of the old daemon any more",
    "adoption.scanned": "it knows every life there is",
    "adoption.lost-trees-ended": "what had lost its shim is gone",
    "adoption.files-read": "it knows what is to be up",
    "adoption.strays-ended": "what is nobody's is gone",
    "adoption.unit-restored": "one unit has its state and its news, none is taken",
    "adoption.restored": "all of them have",
    "adoption.news-taken": "the news of one event is on disk",
    "adoption.lives-removed": "the directories of dead lives are gone, nothing new is begun",
    "adoption.over": "everything is adopted, nobody was told so",
    "supervisor.decided": "a step was decided, nothing is on disk",
    "disk.drafted": "a state or a topology is about to take the old one's place on disk",
    "supervisor.saved": "the state is on disk, nobody knows",
    "supervisor.published": "the routing table is out, the journal doesn't know",
    "supervisor.recorded": "the journal knows, nothing is done",
    "supervisor.performed-one": "one action is done",
    "supervisor.performed-all": "every action is begun",
    "supervisor.settled": "what follows for others is begun, too",
    "launcher.life-made": "a life has its directory, nobody was asked to fill it",
    "launcher.birth-asked": "the zygote was asked for a shim",
    "launcher.birth-heard": "the zygote has answered, nobody knows",
    "launcher.shim-connected": "the birth is in the mailbox, the shim connected",
    "launcher.stop-given": "the shim was told to stop",
    "launcher.kill-given": "the shim was told to kill",
    "launcher.exit-heard": "the main process's end was heard, nobody knows",
    "launcher.end-heard": "the tree's end was heard, nobody knows",
    "launcher.end-posted": "the tree's end is in the mailbox, its directory still there",
    "launcher.life-removed": "the tree's end is on disk, its directory gone",
    "failures.noted": "a replica was given up, its line waits for the GPU driver",
    "failures.written": "the line is written, the note that it waits is still there",
    "deployments.written": "a topology is on disk, nothing of it begun",
    "deployments.stop-written": "parts of it are to stop in order, nobody was asked",
    "deployments.down-written": "it is to go down, nobody was asked to stop",
    "deployments.state-removed": "it is down, one replica's state is removed",
    "deployments.forgotten": "its last file is removed, nobody was told so",
    "zygote.forked": "a shim is there, a request for it has come, and it has read nothing",
    "shim.recorded": "a shim has left its record, the daemon wasn't told",
    "shim.answered": "the daemon was told, there is no worker yet",
    "shim.forked": "there is a worker, the shim isn't watching yet",
    "shim.stop-heard": "it was told to stop and has done nothing",
    "shim.stop-done": "main has its SIGTERM, nobody knows",
    "shim.main-reaped": "it has main's exit status, nobody else has",
    "shim.exit-told": "it told the exit, the rest of the tree lives",
    "shim.kill-begun": "the tree is being killed",
    "shim.tree-empty": "nothing is left of the tree, there is no record of that",
    "shim.end-recorded": "the exit record is written, nobody was told",
    "shim.end-told": "it was told, the shim still lives",
}  # fmt: skip
"""Every point, and what is true there. A test checks that the code has exactly these."""

_file = os.environ.get(VARIABLE)


def passed_on() -> dict[str, str]:
    """What a process of ours needs in its environment to have points, too."""
    return {} if _file is None else {VARIABLE: _file}


def reached(name: str) -> None:
    """Come by a point. Does nothing, unless exactly this one is armed."""
    if _file is not None and (victim := _armed(_file, name)) is not None:
        _kill(victim)


def _armed(path: str, name: str) -> int | None:
    """Return who is to die here, if anybody is; the file is removed then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
            return None
        point, _, pid = os.read(fd, BYTES_MAX).decode("ascii", "replace").strip().partition(" ")
    finally:
        os.close(fd)
    if point != name or not pid.isdigit():
        return None
    try:
        os.unlink(path)
    except OSError:
        return None  # it has fired elsewhere
    return int(pid) or os.getpid()


def _kill(pid: int) -> None:
    """Kill, and go on only when it is dead: that is what the point's name promises."""
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(DEATH_MS)
    os.close(pidfd)
