"""Random harm to a real dynorch, and oracles that ask the kernel instead of dynorch.

A seed decides what is done and in which order: what is killed or frozen, which verbs are sent, and
how long the pauses are. The machine decides the rest, so a seed repeats the deeds, not the exact
moments; its history is printed with every failure. Each process of a world carries a token in its
environment, and each process of a worker's tree the tag of its life: that is all the oracles read.
"""

import os
import random
import re
import signal
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from orchestrator.daemon.client import daemon_pid
from orchestrator.wire import messages
from orchestrator.wire.sockets import make_socket
from tests.e2e.conftest import Dynorch
from tests.eventually import eventually

ZOO = Path(__file__).resolve().parents[1] / "zoo.py"
TOKEN = "CHAOS_WORLD"
LIFE = re.compile(rb"DYNORCH_TREE=([^\0#/]+/[^\0#/]+)-(\d+)\.(\d+)#(\d+)/")
LOOK_S = 0.04
PAUSES_S = (0.0, 0.0, 0.01, 0.05, 0.2, 0.6)
TOPOLOGY = """
name = "chaos"
model = "tiny"
restart = { backoff-initial = "10ms", backoff-max = "100ms", intensity = 10000, attempts = 10000 }
stop = { drain = "500ms", grace = "1s", linger = "200ms" }
start = { timeout = "20s", stop-grace = "300ms" }
[frontend]
port = {port}
[roles.worker]
engine = "sim"
replicas = 2
[processes.stubborn]
command = ["{python}", "-I", "-S", "{zoo}", "stubborn", "{root}/stubborn"]
[processes.memory]
command = ["{python}", "-I", "{zoo}", "shared_memory", "{root}/memory"]
[processes.needy]
command = ["sleep", "100000"]
depends-on = ["worker", "stubborn"]
"""
UNITS = ("worker", "worker-0", "worker-1", "frontend", "stubborn", "memory", "needy")


@dataclass(frozen=True)
class Seen:
    """One living process of a world. `incarnation` is 0 outside of all trees."""

    pid: int
    starttime: int
    what: str
    replica: str = ""
    incarnation: int = 0

    def __str__(self) -> str:
        life = f" {self.replica}#{self.incarnation}" if self.replica else ""
        return f"{self.what}{life} ({self.pid})"

    @property
    def lives(self) -> bool:
        return stat_of(self.pid)[:1] == (self.starttime,)


def stat_of(pid: int) -> tuple[int, ...]:
    """Its start time, or nothing when it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ()
    return () if fields[0] in "ZX" else (int(fields[19]),)


def look(token: str) -> list[Seen]:
    """Every living process that carries this world's token."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            if token.encode() not in environ:
                continue
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        started = stat_of(pid)
        if started:
            found.append(identify(pid, started[0], command, environ))
    return found


def identify(pid: int, starttime: int, command: str, environ: bytes) -> Seen:
    what = next((w for w in ("shim", "zygote") if command.startswith(f"dynorch: {w}")), "")
    if not what and "-m orchestrator.daemon" in command:
        what = "daemon"
    tree = LIFE.search(environ)
    if tree is None or what in {"zygote", "daemon"}:
        return Seen(pid, starttime, what or "other")
    role, index, _, incarnation = (group.decode() for group in tree.groups())
    return Seen(pid, starttime, what or "tree", f"{role}-{index}", int(incarnation))


class Watch(threading.Thread):
    """Looks all the time for two incarnations of one replica that live at once."""

    def __init__(self, token: str) -> None:
        super().__init__(daemon=True)
        self._token = token
        self._over = threading.Event()
        self.found: list[str] = []
        self.others: set[tuple[int, int]] = set()

    def run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.judge(look(self._token))

    def judge(self, seen: list[Seen]) -> None:
        newest: dict[str, int] = {}
        for one in seen:
            newest[one.replica] = max(newest.get(one.replica, 0), one.incarnation)
            if one.what in {"daemon", "zygote"}:
                self.others.add((one.pid, one.starttime))
        for one in seen:
            # The look takes a while: what was seen first may have died before the last was born.
            if one.what == "tree" and one.incarnation < newest[one.replica] and one.lives:
                self.found.append(f"{one} while {newest[one.replica]} lives")

    def stop(self) -> None:
        self._over.set()
        self.join()


@dataclass
class World:
    """One dynorch, and what has been done to it."""

    dynorch: Dynorch
    seed: int
    history: list[str] = field(default_factory=list)
    frozen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        value = f"{self.seed}-{os.getpid()}-{time.monotonic_ns()}"
        self.token = f"{TOKEN}={value}"
        self.dynorch.env[TOKEN] = value
        self.chance = random.Random(self.seed)
        self.watch = Watch(self.token)
        self.context = zmq.Context()
        for folder in ("stubborn", "memory"):
            (self.dynorch.root / folder).mkdir()
        text = TOPOLOGY.replace("{python}", sys.executable).replace("{zoo}", str(ZOO))
        self.file = self.dynorch.file(text.replace("{root}", str(self.dynorch.root)))
        self.verbs: list[object] = []

    def note(self, text: str) -> None:
        self.history.append(f"{time.monotonic() % 1000:8.3f} {text}")

    # ---- harm --------------------------------------------------------------------------------

    def tell(self, verb: str, **args: object) -> None:
        """Send a verb and don't wait: what comes next shall hit it in the middle."""
        self.note(f"{verb} {args}")
        socket = make_socket(self.context, zmq.DEALER)
        socket.connect(f"ipc://{self.dynorch.run_dir}/control.sock")
        socket.send(messages.encode(messages.Verb(verb, args)))
        self.verbs.append(socket)

    def daemon(self) -> list[Seen]:
        pid = daemon_pid(self.dynorch.run_dir)
        return [Seen(pid, stat_of(pid)[0], "daemon")] if pid and stat_of(pid) else []

    def some(self, what: str) -> list[Seen]:
        if what == "daemon":
            return self.daemon()
        found = [one for one in look(self.token) if one.what == what]
        return [self.chance.choice(found)] if found else []

    def hit(self, victims: list[Seen], number: signal.Signals) -> None:
        """All of them as near to at once as can be."""
        for one in victims:
            if one.lives:
                self.note(f"{number.name} {one}")
                os.kill(one.pid, number)
                if number == signal.SIGSTOP:
                    self.frozen.append(one)

    def thaw(self) -> None:
        for one in self.frozen:
            if one.lives:
                self.note(f"SIGCONT {one}")
                os.kill(one.pid, signal.SIGCONT)
        self.frozen.clear()

    def pause(self) -> None:
        until = time.monotonic() + self.chance.choice(PAUSES_S)
        eventually(lambda: time.monotonic() >= until)

    def kill_some(self) -> None:
        what = self.chance.choice(("shim", "tree", "tree", "zygote", "daemon"))
        self.hit(self.some(what), signal.SIGKILL)

    def kill_together(self) -> None:
        kinds = self.chance.sample(("shim", "shim", "tree", "tree", "zygote", "daemon"), 3)
        self.hit([one for what in kinds for one in self.some(what)], signal.SIGKILL)

    def kill_many(self) -> None:
        """Every shim, or every process of all trees, and perhaps the daemon first."""
        what = self.chance.choice(("shim", "tree"))
        first = self.daemon() if self.chance.random() < 0.5 else []
        self.hit(first + [one for one in look(self.token) if one.what == what], signal.SIGKILL)

    def freeze(self) -> None:
        what = self.chance.choice(("shim", "tree", "zygote", "daemon"))
        self.hit(self.some(what), signal.SIGSTOP)

    def order(self) -> None:
        verb = self.chance.choice(("restart", "restart", "stop", "start"))
        self.tell(verb, target=f"chaos/{self.chance.choice(UNITS)}")

    def order_and_kill(self) -> None:
        """A verb, and a kill while it is being done."""
        self.order()
        self.pause()
        self.hit(self.some(self.chance.choice(("daemon", "daemon", "zygote"))), signal.SIGKILL)

    def down(self) -> None:
        self.tell("down", topology="chaos", now=self.chance.random() < 0.3)

    def up(self) -> None:
        """A process of its own; nobody waits for it here."""
        self.note("up")
        self.dynorch.popen("up", "-d", self.file)

    # ---- a whole run -------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Begin, harm, and see whether all is well again."""
        try:
            self._run(steps)
        except BaseException as error:
            error.add_note(f"seed {self.seed}:\n" + "\n".join(self.history))
            error.add_note(self.dynorch("events", "-n", "60", code=None).stdout)
            raise
        finally:
            self.thaw()
            self.watch.stop()
            self.context.destroy(linger=0)

    def _run(self, steps: int) -> None:
        self.watch.start()
        self.up()
        if self.chance.random() < 0.6:
            eventually(self.is_well, within_s=30)
        deeds = [
            *[self.kill_some] * 4, *[self.kill_together] * 4, self.kill_many,
            *[self.freeze] * 2, self.thaw, *[self.order] * 3, *[self.order_and_kill] * 3,
            self.down, *[self.up] * 2,
        ]  # fmt: skip
        for _ in range(steps):
            self.chance.choice(deeds)()
            self.pause()
        self.thaw()
        self.recover()
        self.end()

    def recover(self) -> None:
        """The harm is over: one `up` must bring everything back, an earlier `down` permitting."""
        self.note("recover")
        for socket in self.verbs:
            socket.close()  # what no daemon has taken shall not reach the next one

        def is_up() -> bool:
            done = self.dynorch("up", "-d", self.file, code=None, timeout=40)
            said = done.stdout + done.stderr
            self.note(f"up: {done.returncode} {said.strip().splitlines()[-1:]}")
            assert "Traceback" not in said, said
            assert "a bug" not in said, said
            return done.returncode == 0

        eventually(is_up, within_s=45, every_s=0.2)
        eventually(self.is_well, within_s=15)
        assert not self.watch.found, self.watch.found

    def is_well(self) -> bool:
        """Everything is ready, and a request is answered by the engine."""
        try:
            body = msgspec.json.encode({"model": "tiny", "prompt": "x", "max_tokens": 2})
            call = urllib.request.Request(
                f"{self.dynorch.url}/v1/completions",
                body,
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(call, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self) -> None:
        """`down`, and nothing may be left of what ever was."""
        self.note("end")
        told = self.dynorch("down", timeout=60)
        assert "nothing left" in told.stdout, told.stdout
        self.nothing_left()
        assert not self.watch.found, self.watch.found
        log = (self.dynorch.state_dir / "logs" / "daemon.log").read_text()
        assert "Traceback" not in log, log
        assert "Error" not in log, log

    def nothing_left(self) -> None:
        def no_process() -> bool:
            left = [one for one in look(self.token) if one.what != "other"]
            assert not left, left
            return True

        eventually(no_process, within_s=5)
        run_dir = self.dynorch.run_dir
        for folder in ("lives", "owed", "replicas", "topologies"):
            assert not list((run_dir / folder).iterdir()), f"left in {folder}"
        assert not list(run_dir.rglob("*.sock")), "sockets are left"
        self.no_shared_memory()

    def no_shared_memory(self) -> None:
        """No name is left, unless those who mapped it were killed by us, and not in order.

        Who was killed says nothing any more about what it had mapped.
        """
        folder = self.dynorch.root / "memory"
        names = (folder / "names").read_text().split() if (folder / "names").exists() else []
        left = [path for name in names if (path := Path("/dev/shm", name)).exists()]
        for path in left:
            path.unlink()
        if not any("chaos/memory" in done and "SIG" in done for done in self.history):
            assert not left, left
