"""The shim: parent of one worker, owner of its whole tree.

It is a session leader and a child subreaper, so whatever the worker forks, however it forks,
stays below it. It waits in one poll, without a timeout while nothing is due, for five things:
signals (a child died), the worker's output, its clients, the report of the worker's beginning, and
its own deadline. It needs no daemon: a stop that was asked for is carried to its end.

    running --stop--> stopping --main gone--> lingering --time's up--> killing
       |                  |  (grace is over: killing)                     |
       +-----main gone----+----------> lingering                          |
                                           +---no child left---> empty <--+

No child left is the kernel's word (ECHILD), and it covers the whole tree: whoever loses its parent
becomes our child. Only then is the exit record written and "empty" said. Main gets one SIGTERM in
its life, however often it is told to stop. Signals to the shim itself do nothing, short of SIGKILL:
it takes its orders from its socket.
"""

import contextlib
import json
import os
import select
import signal
import time

from orchestrator.host import child, enclosure, kernel, log_file, prctl, procfs, shm, title, tree
from orchestrator.host.clients import Clients
from orchestrator.host.fault_points import reached
from orchestrator.host.notify import Notify
from orchestrator.host.seed import Instant, Seed
from orchestrator.host.spawn import Spawn
from orchestrator.host.whole_file import append, write_new

PROTOCOL = 1
KILL_PAUSE_S = 0.05
"""While killing: look again after this even if nobody was seen to die."""

BUSY_S = 0.002
"""Output that comes again this soon is collected for as long, instead of line by line."""

RETRY_S = 5.0
"""How often writing the exit record is tried where the disk is full."""


def line_of(record: dict[str, object]) -> bytes:
    """Return a record as the files of a life's directory have it."""
    return json.dumps(record).encode() + b"\n"


class Shim:
    """One life, from before its first process to after its last."""

    def __init__(self, spawn: Spawn, seed: Seed | None = None) -> None:
        """`seed`: who will be main, if he is there already."""
        self._spawn = spawn
        self._seed = seed
        self._poll = select.poll()
        self._clients = Clients(self._poll, self._state, self._request)
        self._log = log_file.LogFile(spawn.log_path, spawn.log_max_bytes, spawn.log_backups)
        self._phase = "running"
        self._deadline: float | None = None
        self._record: dict[str, object] = {}
        self._linger_s = spawn.linger_s
        self._main = 0
        self._status: int | None = None
        self._asked = False
        self._childless = False
        self._kill: tree.TreeKill | None = None
        self._kill_began = 0.0
        self._stuck_said = False
        self._exec_error: dict[str, object] | None = None
        self._output = self._report = self._wakeups = -1
        self._output_rests_until: float | None = None
        self._output_came = 0.0
        self._leftovers = shm.Leftovers(time.time(), self._path(shm.NAMES))
        self._enclosure = enclosure.of(spawn, seed.group if seed is not None else "")
        self._told_dropped_bytes = 0
        self._notes = kernel.Notes()
        self._notify = Notify(self._poll, spawn, self._enclosure.present)

    def prepare(self, keep: tuple[int, ...]) -> None:
        """Become a life's shim and leave a record of it. OSError says what can't be had.

        Of the descriptors that are open only `keep` stay so, and the seed's.
        """
        spawn = self._spawn
        fds = self._seed.fds if self._seed is not None else ()
        child.let_go(keep + fds, self._path("shim.err"))
        title.set_tag(spawn.tag)
        title.set_title(f"dynorch: shim {spawn.life}")
        prctl.set_name("dynorch-shim")
        self._record = {
            "protocol": PROTOCOL,
            "life": spawn.life,
            "tag": spawn.tag,
            "boot_id": procfs.boot_id(),
            "shim": procfs.identity(os.getpid()),
            "main": None,
            "log": spawn.log_path,
            "log_from": log_file.size(spawn.log_path),
            "started_at": time.monotonic(),
            "started_wall": time.time(),
            "directory": spawn.directory,
            "group": self._enclosure.group,
        }
        self._clients.listen(spawn.directory)
        self._notify.listen()
        write_new(self._path("life.json"), line_of(self._record))
        self._enclosure.prepare()

    def withdraw(self) -> None:
        """Take the record back: nobody was told of it, and there was never a worker to be lost."""
        with contextlib.suppress(OSError):
            os.unlink(self._path("life.json"))
        if self._seed is not None:
            self._seed.discard()

    def fork(self) -> int | None:
        """Let there be a worker. None in the shim; in the worker, where to report trouble."""
        self._wakeups, wakeups_end = os.pipe()
        for fd in (self._wakeups, wakeups_end):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeups_end, warn_on_full_buffer=False)
        main = self._seed or Instant(self._enclosure)
        if main.pid == 0:
            self._clients.forget()
            self._notify.forget()
            return main.report_end
        self._main, self._output, self._report = main.pid, main.output, main.report
        if self._seed is not None:
            self._seed.sow(self._spawn)
            self._enclosure.embrace(self._main)
        self._notes.begin()
        born = {
            "main": procfs.identity(self._main),
            "group": self._enclosure.group,
            "pipe": os.fstat(self._output).st_ino,
        }
        self._record |= born
        with contextlib.suppress(OSError):  # a full disk: our clients know more than the record
            append(self._path("life.json"), line_of(born))
        reached("shim.forked")
        return None

    def watch(self) -> None:
        """Look after the worker until nothing of it is left, or its time is up."""
        if self._spawn.lifetime_s:
            self._deadline = time.monotonic() + self._spawn.lifetime_s
        self._clients.watch()
        self._notify.watch()
        for fd in (self._output, self._report, self._wakeups, self._enclosure.news):
            if fd >= 0:
                self._poll.register(fd, select.POLLIN)
        self._reap()  # a seed may have died before anybody listened
        self._advance(time.monotonic())
        while self._phase != "empty":
            for fd, _ in self._poll.poll(self._timeout_ms()):
                self._serve(fd)
            self._advance(time.monotonic())
        self._finish()

    # What wakes us.

    def _serve(self, fd: int) -> None:
        if fd == self._wakeups:
            os.read(fd, 4096)
            self._reap()
        elif fd == self._output:
            self._pump()
        elif fd == self._report:
            self._read_report()
        elif fd == self._enclosure.news:
            self._read_news()
        elif self._clients.owns(fd):
            self._clients.serve(fd)
        elif self._notify.owns(fd) and self._notify.serve(self._main):
            self._clients.tell(self._state())

    def _timeout_ms(self) -> int | None:
        times = (self._deadline, self._output_rests_until, self._notify.rests_until)
        due = [at for at in times if at is not None]
        if not due:
            return None
        return max(0, int((min(due) - time.monotonic()) * 1000 + 0.999))

    def _pump(self) -> None:
        """Move output; if it comes thick, let it gather for a moment before the next time."""
        moved, more = self._log.pump(self._output)
        if not more:
            self._poll.unregister(self._output)
            self._output = -1
            return
        if self._log.dropped_bytes >= 2 * self._told_dropped_bytes + 1:
            self._told_dropped_bytes = self._log.dropped_bytes
            self._clients.tell(self._state())
        now = time.monotonic()
        if moved < log_file.PIPE_BYTES // 2 and now - self._output_came < 2 * BUSY_S:
            self._output_rests_until = now + BUSY_S
            self._poll.unregister(self._output)
        self._output_came = now

    def _read_report(self) -> None:
        try:
            text = os.read(self._report, 8192)
        except BlockingIOError:
            return
        if text:
            self._exec_error = child.read_report(text)
        self._poll.unregister(self._report)
        os.close(self._report)
        self._report = -1

    def _reap(self) -> None:
        """Take every exit status there is. The only place of this process that waits."""
        while True:
            try:
                pid, status = self._notes.wait()
            except ChildProcessError:
                self._childless = True
                return
            if pid == 0:
                return
            if pid == self._main:
                self._main_gone(status)
            elif self._enclosure.news >= 0:
                self._read_news()

    def _read_news(self) -> None:
        """Main isn't our child: somebody else reaps it and says so, or is dead, as main is then."""
        status = self._enclosure.read_news()
        if self._status is None:
            self._main_gone(signal.SIGKILL if status is None else status)
        self._poll.unregister(self._enclosure.news)
        self._enclosure.news = -1

    # What we are told.

    def _request(self, request: dict[str, object]) -> None:
        match request:
            case {"op": "state"}:
                self._clients.tell(self._state())
            case {"op": "stop"}:
                grace = request.get("grace_s", self._spawn.grace_s)
                linger = request.get("linger_s", self._spawn.linger_s)
                if isinstance(grace, int | float) and isinstance(linger, int | float):
                    self._stop(grace, linger)
            case {"op": "kill"}:
                self._asked = True
                self._begin_kill()
            case {"op": "note"}:
                self._note()
            case {"op": "log", "max_bytes": int() as most, "backups": int() as backups}:
                self._log.limit(most, backups)
            case _:
                self._clients.tell({"event": "refused", "text": f"not an operation: {request!r}"})

    def _stop(self, grace_s: float, linger_s: float) -> None:
        reached("shim.stop-heard")
        self._linger_s = linger_s
        now = time.monotonic()
        if self._phase == "running":
            self._asked = True
            self._phase = "stopping"
            self._deadline = now + grace_s
            # A main that doesn't catch SIGTERM takes what it maps with it: afterwards nothing says
            # which names in /dev/shm were its own.
            self._note()
            self._terminate()
            reached("shim.stop-done")
            self._clients.tell(self._state())
        elif self._phase == "stopping" and self._deadline is not None:
            # The newest order counts: it may have asked for more time, and been given it.
            self._deadline = now + grace_s

    def _note(self) -> None:
        for one in self._enclosure.present()[: tree.NOTED_MAX]:
            self._leftovers.note(one.pid)
        self._leftovers.keep()

    def _terminate(self) -> None:
        if self._enclosure.news < 0:
            # Our own child, not reaped yet: nobody else can have this pid.
            os.kill(self._main, signal.SIGTERM)
            return
        main = procfs.stat(self._main)
        if main is not None and procfs.identity(self._main) == self._record["main"]:
            tree.kill_exactly(main, signal.SIGTERM)

    # What follows.

    def _main_gone(self, status: int) -> None:
        reached("shim.main-reaped")
        self._status = status
        self._notes.main_gone()
        self._record["exited_at"] = time.monotonic()
        if self._report >= 0:
            self._read_report()
        if self._phase != "killing":
            self._phase = "lingering"
            linger = self._linger_s if self._asked else self._spawn.crash_linger_s
            self._deadline = time.monotonic() + linger
            if linger > 0:
                self._note()
        exited = {"event": "exited", "status": status, "at": self._record["exited_at"]}
        self._clients.tell({**exited, "exec_error": self._exec_error})
        reached("shim.exit-told")

    def _advance(self, now: float) -> None:
        if self._output_rests_until is not None and now >= self._output_rests_until:
            self._output_rests_until = None
            self._poll.register(self._output, select.POLLIN)
        if self._notify.rests_until is not None:
            self._notify.watch(now)
        if self._childless:
            self._phase = "empty"
        elif self._phase == "killing":
            self._kill_pass(now)
        elif self._deadline is not None and now >= self._deadline:
            self._begin_kill()

    def _begin_kill(self) -> None:
        if self._phase == "killing":
            return
        self._phase = "killing"
        self._kill_began = time.monotonic()
        storm = self._enclosure.storm
        self._kill = tree.TreeKill(self._leftovers, self._kill_began, storm)
        reached("shim.kill-begun")
        self._clients.tell(self._state())
        self._kill_pass(self._kill_began)

    def _kill_pass(self, now: float) -> None:
        assert self._kill is not None
        new = self._kill.run_pass(self._enclosure.members(), now)
        self._reap()
        stuck = now > self._kill_began + self._spawn.kill_timeout_s
        self._deadline = now if new else now + (1.0 if stuck else KILL_PAUSE_S)
        if stuck and not self._stuck_said:
            self._stuck_said = True
            self._clients.tell(self._state())

    def _state(self) -> dict[str, object]:
        stuck = tree.describe(self._kill.stuck) if self._kill and self._stuck_said else ""
        return {
            **self._record,
            "event": "state",
            "phase": self._phase,
            "status": self._status,
            "asked": self._asked,
            "exec_error": self._exec_error,
            "stuck": stuck,
            "said": self._notify.facts,
            "dropped_bytes": self._log.dropped_bytes,
        }

    def _path(self, name: str) -> str:
        return os.path.join(self._spawn.directory, name)

    # The end.

    def _finish(self) -> None:
        """Empty the pipe, remove what the tree left, write the exit record, say so."""
        reached("shim.tree-empty")
        if self._output >= 0:
            self._log.pump(self._output)
            if self._output_rests_until is None:
                self._poll.unregister(self._output)
        self._enclosure.close()
        record = {
            **self._record,
            "event": "empty",
            "status": self._status,
            "exec_error": self._exec_error,
            "empty_at": time.monotonic(),
            "asked": self._asked,
            "killed": self._kill.killed if self._kill else 0,
            "unlinked": self._leftovers.remove(),
            **self._log.record(),
            **self._notes.record(),
        }
        while not self._leave(record):
            # The disk is full: a daemon that is connected has been told, another one may come.
            for fd, _ in self._poll.poll(int(RETRY_S * 1000)):
                self._serve(fd)
        self._log.close()

    def _leave(self, record: dict[str, object]) -> bool:
        try:
            write_new(self._path("exit.json"), line_of(record))
        except FileNotFoundError:
            pass  # somebody removed the life's directory: nobody wants to know
        except OSError:
            self._clients.tell(record)
            return False
        reached("shim.end-recorded")
        self._clients.tell(record)
        reached("shim.end-told")
        return True
