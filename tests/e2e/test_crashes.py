"""Whatever is killed comes back, explained, with nothing of the old life left."""

import os
import signal
import threading
from pathlib import Path

from openai import OpenAI, OpenAIError

from tests.e2e.conftest import alive, zombie
from tests.e2e.test_up_down import AGG, client_of, request
from tests.eventually import eventually

ASK = {"model": "tiny", "prompt": "x", "max_tokens": 4}


def answers(dynorch) -> bool:
    return request(dynorch, "/v1/completions", ASK)[0] == 200


def shim_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sessions(sid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == sid and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def test_statement_06_kill_of_a_shim_counts_once_as_a_crash(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    pid = dynorch.pid("worker")
    shim = shim_of(pid)
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: zombie(pid), within_s=5)

    def back():
        replica = dynorch.replica("worker")
        assert (replica["phase"], replica["restarts"]) == ("ready", 1)
        return "shim" in replica["reason"]

    eventually(back, within_s=20)
    assert sessions(shim) == []
    assert answers(dynorch)


def test_kill_of_the_frontend_brings_a_new_one(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    os.kill(dynorch.pid("frontend"), signal.SIGKILL)
    eventually(lambda: dynorch.replica("frontend")["restarts"] == 1, within_s=20)
    eventually(lambda: dynorch.topology()["health"] == "ready", within_s=20)
    assert answers(dynorch)


def test_kill_of_the_zygote_costs_nothing(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    zygotes = [int(path.stem) for path in (dynorch.run_dir / "zygotes").glob("*.json")]
    worker = dynorch.pid("worker")
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    assert answers(dynorch)
    assert dynorch.pid("worker") == worker
    dynorch("restart", "agg/worker")
    assert dynorch.pid("worker") != worker
    assert answers(dynorch)


def test_daemon_killed_under_streams_breaks_none_and_is_adopted(dynorch):
    file = dynorch.file(AGG + 'sim = { step = "20ms" }\n')
    dynorch("up", "-d", file)
    pids = {role: dynorch.pid(role) for role in ("worker", "frontend")}
    streams = [Stream(client_of(dynorch), tokens=150) for _ in range(8)]
    for stream in streams:
        stream.start()
    eventually(lambda: all(stream.tokens > 3 for stream in streams), within_s=20)
    dynorch.kill_daemon()
    gone = dynorch("status", code=3)
    assert "daemon gone" in gone.stdout
    assert str(pids["worker"]) in gone.stdout
    assert all(stream.is_alive() for stream in streams), "streams ended before the adoption"
    dynorch("up", "-d", file)
    assert {role: dynorch.pid(role) for role in pids} == pids
    assert dynorch.replica("worker")["incarnation"] == 1
    for stream in streams:
        stream.join(timeout=30)
        assert stream.failure is None
        assert stream.tokens == 150
    os.kill(pids["worker"], signal.SIGKILL)  # the new daemon really watches it
    eventually(lambda: dynorch.replica("worker")["restarts"] == 1, within_s=20)


class Stream(threading.Thread):
    """One streaming client; counts the tokens it got."""

    def __init__(self, client: OpenAI, tokens: int, model: str = "tiny") -> None:
        super().__init__(daemon=True)
        self._client, self._wanted, self._model = client, tokens, model
        self.tokens = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            stream = self._client.completions.create(
                model=self._model, prompt="count", max_tokens=self._wanted, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            for chunk in stream:
                self.tokens += bool(chunk.choices and chunk.choices[0].text)
        except OpenAIError as error:
            self.failure = error


def test_a_worker_that_dies_without_a_daemon_is_explained_by_the_next(dynorch):
    file = dynorch.file("""
name = "p"
[processes.job]
command = ["sh", "-c", "echo last words; exec sleep 1000"]
""")
    dynorch("up", "-d", file)
    pid = dynorch.pid("job")
    dynorch.kill_daemon()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: zombie(pid))
    dynorch("up", "-d", file)

    def back():
        replica = dynorch.replica("job")
        assert (replica["phase"], replica["restarts"]) == ("ready", 1)
        return "SIGTERM" in replica["reason"]

    eventually(back, within_s=20)


def test_down_without_a_daemon_ends_what_it_left(dynorch):
    dynorch("up", "-d", dynorch.file(AGG))
    pids = [dynorch.pid("worker"), dynorch.pid("frontend")]
    dynorch.kill_daemon()
    assert all(alive(pid) for pid in pids)
    dynorch("down")
    assert all(zombie(pid) for pid in pids)
    dynorch("status", code=3)


def test_a_command_that_does_not_exist_fails_once_and_says_so(dynorch):
    failed = dynorch("up", "-d", dynorch.file("""
name = "p"
[processes.typo]
command = ["sleeep", "1000"]
[processes.fine]
command = ["sleep", "1000"]
"""), code=1)  # fmt: skip
    last = failed.stderr.strip().splitlines() or failed.stdout.strip().splitlines()
    assert "sleeep" in last[-1]
    replica = dynorch.replica("typo")
    assert (replica["phase"], replica["incarnation"]) == ("failed", 1)
    eventually(lambda: dynorch.replica("fine")["phase"] == "ready", within_s=30)


def test_a_crash_loop_ends_with_a_reason(dynorch):
    # A plain command is ready once started, so `up` may catch a moment in which all is well.
    dynorch("up", "-d", dynorch.file("""
name = "p"
restart = { backoff-initial = "50ms", attempts = 3, intensity = 2 }
[processes.crasher]
command = ["sh", "-c", "echo no luck today; exit 3"]
"""), code=None)  # fmt: skip
    eventually(lambda: dynorch.replica("crasher")["phase"] == "failed", within_s=20)
    replica = dynorch.replica("crasher")
    assert "code 3" in replica["reason"]
    assert "no luck today" in replica["reason"] + replica["evidence"]


def test_dependencies_hold_back_and_let_go(dynorch):
    flag = dynorch.root / "flag"
    dynorch(
        "up",
        "-d",
        dynorch.file(f"""
name = "d"
[processes.prepare]
command = ["touch", "{flag}"]
oneshot = true
[processes.server]
command = ["sh", "-c", "test -e {flag} && exec sleep 1000"]
depends-on = ["prepare"]
"""),
    )
    assert dynorch.replica("prepare")["phase"] == "completed"
    server = dynorch.replica("server")
    assert (server["phase"], server["restarts"]) == ("ready", 0)
