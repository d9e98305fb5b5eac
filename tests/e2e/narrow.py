"""A daemon that dies in a named moment, and what must be true after the next one has begun.

Three things run beside it: `ticker` writes numbered lines and is never touched, `mortal` is what
the deeds are done to, and a second topology, `other`, comes and goes. See `host/fault_points`.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import zmq

from orchestrator.daemon.client import Client, daemon_pid, decode_data
from orchestrator.host.fault_points import VARIABLE
from orchestrator.wire import messages
from orchestrator.wire.snapshot import ReplicaStatus, Snapshot
from orchestrator.wire.sockets import make_socket
from tests.e2e.chaos import TOKEN, ZOO, Seen, look
from tests.e2e.conftest import Dynorch, zombie
from tests.e2e.gpus import given
from tests.eventually import eventually

MAIN = """
name = "main"
restart = { backoff-initial = "10ms", backoff-max = "20ms", intensity = 10000, attempts = 10000 }
stop = { drain = "500ms", grace = "20s", linger = "50ms" }
[processes.ticker]
command = ["{python}", "-I", "-S", "{zoo}", "ticker", "{root}"]
log = { max-size = "4KiB", backups = 100 }
[processes.mortal]
command = ["{python}", "-I", "-S", "{zoo}", "mortal", "{root}"]
"""
OTHER = """
name = "other"
stop = { drain = "100ms", grace = "20s", linger = "50ms" }
[processes.one]
command = ["{python}", "-I", "-S", "{zoo}", "sleeper", "{root}"]
[processes.two]
command = ["{python}", "-I", "-S", "{zoo}", "sleeper", "{root}"]
depends-on = ["one"]
"""
DOOMED = """
name = "doomed"
[processes.one]
command = ["sh", "-c", "exit 2"]
gpus = 1
"""
FAMILY = 5


class Scene:
    """One run directory in which daemons come and go."""

    def __init__(self, dynorch: Dynorch) -> None:
        self.dynorch = dynorch
        self.fault = dynorch.root / "fault"
        value = f"narrow-{os.getpid()}"
        self.token = f"{TOKEN}={value}"
        given(dynorch, 1)
        env = {**dynorch.env, TOKEN: value, VARIABLE: str(self.fault)}
        self.said = (dynorch.root / "daemons").open("wb")
        self.forker = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.daemon_forker"],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
        )  # fmt: skip
        self.files = {
            name: dynorch.file(self._filled(text), f"{name}.toml")
            for name, text in (("main", MAIN), ("other", OTHER), ("doomed", DOOMED))
        }
        self.context = zmq.Context()
        self.counted = -1
        self.speechless: set[int] = set()

    def _filled(self, text: str) -> str:
        text = text.replace("{python}", sys.executable).replace("{zoo}", str(ZOO))
        return text.replace("{root}", str(self.dynorch.root))

    # ---- daemons -----------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The daemon's; 0 when there is none."""
        return daemon_pid(self.dynorch.run_dir) or 0

    def start(self) -> str:
        """Start a daemon; what it said, which is nothing where it died at once."""
        self.forker.stdin.write("start\n")
        self.forker.stdin.flush()
        return self.forker.stdout.readline().split(" ", 1)[1].strip()

    def kill(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: zombie(pid))

    def arm(self, point: str, pid: int) -> None:
        draft = self.fault.with_suffix(".new")
        draft.write_text(f"{point} {pid}\n")
        draft.chmod(0o600)
        draft.rename(self.fault)

    def settle(self) -> None:
        """Everything is as it was before the first deed, whatever the last test has left."""
        self.fault.unlink(missing_ok=True)
        if not self.pid:
            assert self.start() == "ready"
        self.call("up", file=str(self.files["main"]))
        self.ready("main/mortal")
        self.ready("main/ticker")
        eventually(lambda: len(self.tree("mortal")) == FAMILY)
        eventually(lambda: self.lines("mortal")[-1].startswith(b"begin"))

    # ---- verbs -------------------------------------------------------------------------------

    def call(self, verb: str, **args: object):
        with Client(self.dynorch.run_dir) as client:
            reply = client.call(verb, **args)
        assert reply.code == 0, reply.text
        return reply

    def tell(self, verb: str, **args: object) -> zmq.Socket:
        """Ask without waiting; the caller closes the socket."""
        socket = make_socket(self.context, zmq.DEALER)
        socket.connect(f"ipc://{self.dynorch.run_dir}/control.sock")
        socket.send(messages.encode(messages.Verb(verb, args)))
        return socket

    def replicas(self) -> dict[str, ReplicaStatus]:
        snapshot = decode_data(self.call("status"), Snapshot)
        return {
            f"{topology.name}/{role.name}": role.replicas[0]
            for topology in snapshot.topologies
            for role in topology.supervised
        }

    def replica(self, name: str) -> ReplicaStatus:
        return self.replicas()[name]

    def ready(self, name: str) -> ReplicaStatus:
        def is_ready():
            found = self.replicas().get(name)
            assert found is not None, name
            assert found.phase == "ready", found
            return found if found.workers[0].pid else None

        return eventually(is_ready, within_s=30)

    def main_pid(self, name: str) -> int:
        return self.ready(name).workers[0].pid

    # ---- what the kernel and the files say ------------------------------------------------------

    def tree(self, process: str) -> list[Seen]:
        """Every living process of all lives of a process's replica."""
        end = f"/{process}-0"
        found = look(self.token)
        return [one for one in found if one.what == "tree" and one.replica.endswith(end)]

    def lines(self, process: str) -> list[bytes]:
        """Every complete line of a process's log, rotated files included, oldest first."""
        folder = self.dynorch.state_dir / "logs" / "main"
        name = f"{process}-0.0.log"
        rotated = sorted(folder.glob(f"{name}.*"), key=lambda path: -int(path.suffix[1:]))
        try:
            data = b"".join(path.read_bytes() for path in [*rotated, folder / name])
        except FileNotFoundError as error:
            raise AssertionError("it is being rotated") from error
        return data.split(b"\n")[:-1]

    def failures(self) -> list[dict]:
        """What was told of those that were given up."""
        path = self.dynorch.state_dir / "failures.jsonl"
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []

    def no_tick_is_lost(self) -> int:
        """The ticker's numbers follow each other, from what was seen last time on."""

        def whole():
            numbers = [int(line) for line in self.lines("ticker")[1:]]
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            assert self.counted < 0 or numbers[0] <= self.counted + 1, "rotated away unseen"
            return numbers

        self.counted = eventually(whole)[-1]
        return self.counted

    def last_words_are_there(self) -> None:
        """Each life of `mortal` but the present one has left both of its lines, once."""
        said = [re.fullmatch(rb"(begin|end) of (\d+)", line) for line in self.lines("mortal")]
        assert all(said), "lines are torn"
        begun = [one[2] for one in said if one[1] == b"begin"]
        ended = [one[2] for one in said if one[1] == b"end"]
        assert len(set(begun)) == len(begun)
        able = [pid for pid in begun if int(pid) not in self.speechless]
        assert ended == able[: len(ended)]
        assert len(able) - len(ended) <= 1

    def close(self) -> None:
        self.fault.unlink(missing_ok=True)
        if not self.pid:
            self.start()
        self.dynorch("down", "--now", timeout=30)
        os.kill(self.pid, signal.SIGTERM)
        eventually(lambda: not look(self.token) or not self.pid, within_s=10)
        self.forker.stdin.close()
        self.forker.wait(10)
        self.context.destroy(linger=0)
        self.said.close()
        log = Path(self.said.name).read_text()
        assert "Traceback" not in log, log
