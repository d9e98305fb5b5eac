"""How things end: one SIGTERM, in order, in time, whoever asks and however often."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from orchestrator.daemon.client import Client
from tests.e2e.conftest import alive, zombie
from tests.e2e.machine import ZOO
from tests.eventually import eventually, in_time

SLOW = """
name  = "agg"
model = "tiny"
[frontend]
port = {port}
[roles.worker]
engine = "sim"
start = { stop-grace = "1s" }
"""


def zoo(kind: str, folder: Path, *more: object) -> str:
    """The command of a topology's process."""
    return json.dumps([sys.executable, "-I", "-S", ZOO, kind, str(folder), *map(str, more)])


def folder_of(dynorch, name: str) -> Path:
    folder = dynorch.root / name
    folder.mkdir()
    return folder


def noted(folder: Path, count: int) -> dict[str, int]:
    """Wait until so many of a zoo have settled; their pids by kind."""

    def settled():
        lines = (folder / "pids").read_text().splitlines() if (folder / "pids").exists() else []
        return dict(line.split() for line in lines) if len(lines) >= count else None

    return {kind: int(pid) for kind, pid in eventually(settled, within_s=30).items()}


def begun(dynorch) -> int:
    """Wait until the worker has a process; its pid."""

    def here():
        assert dynorch("status", code=None).returncode == 0
        replica = dynorch.replica("worker")
        return replica["phase"] == "starting" and replica["workers"][0]["pid"]

    return eventually(here, within_s=30)


def decided(dynorch, subject: str) -> list[dict]:
    """The steps of one replica, as the daemon wrote them down: event, actions, and when."""
    lines = map(json.loads, (dynorch.state_dir / "journal.jsonl").read_text().splitlines())
    return [line["core"] for line in lines if line["e"]["subject"] == subject and "core" in line]


def since(steps: list[dict], event: str) -> list[dict]:
    """From the last of these events on."""
    kinds = [step["event"]["type"] for step in steps]
    return steps[len(kinds) - 1 - kinds[::-1].index(event) :]


def test_statement_46_a_start_that_swallows_sigterm_is_stopped_in_its_short_grace(dynorch):
    sim = 'sim = { startup = "600s", faults = [{ fault = "ignore-term" }] }\n'
    up = dynorch.popen("up", "-d", dynorch.file(SLOW + sim))

    def stopped_after() -> float:
        pid = begun(dynorch)
        dynorch("stop", "agg/worker", timeout=30)  # its grace after a start would be 60 s
        assert zombie(pid)
        assert dynorch.replica("worker")["phase"] == "stopped"
        steps = since(decided(dynorch, "agg/worker-0"), "stop-requested")
        dynorch("start", "agg/worker", "--no-wait")
        return steps[-1]["now"] - steps[0]["now"]

    in_time(stopped_after, 1.0 + 2.0)
    up.send_signal(signal.SIGINT)
    up.wait(timeout=30)


def test_statement_46_one_that_turns_ready_while_it_is_stopped_is_stopped_all_the_same(dynorch):
    """It has swallowed SIGTERM and goes on loading, as vLLM does; who needs it isn't started."""
    folder = folder_of(dynorch, "loads")
    up = dynorch.popen("up", "-d", dynorch.file(f"""
name = "l"
[processes.p]
command = {zoo("loader", folder)}
ready = {{ notify = true }}
start = {{ stop-grace = "6s" }}
[processes.after]
command = ["sleep", "1000"]
depends-on = ["p"]
"""))  # fmt: skip
    pid = noted(folder, 1)["main"]
    with Client(dynorch.run_dir) as client:
        assert client.call("stop", target="l/p").code == 0
    eventually((folder / "terms").exists, within_s=30)
    os.kill(pid, signal.SIGUSR1)
    eventually((folder / "said").exists, within_s=30)
    assert alive(pid)
    eventually(lambda: zombie(pid), within_s=30)
    eventually(lambda: dynorch.replica("p")["phase"] == "stopped", within_s=30)
    assert [name for name in ("ready", "draining") if name in phases(dynorch, "l/p-0")] == []
    assert dynorch.replica("after")["incarnation"] == 0
    up.kill()
    up.wait()


def phases(dynorch, replica: str) -> list[str]:
    """Every phase that it was ever in."""
    lines = map(json.loads, (dynorch.state_dir / "journal.jsonl").read_text().splitlines())
    return [line["e"]["phase"] for line in lines if line["e"]["subject"] == replica]


def test_statement_49_a_second_ctrl_c_empties_all_trees(dynorch):
    """The first waits for one that ignores SIGTERM, the second doesn't, the third finds nobody."""
    folder = folder_of(dynorch, "zoo")
    file = dynorch.file(f"""
name = "z"
start = {{ settle = "0s" }}
[processes.zoo]
command = {zoo("stubborn", folder)}
""")

    def empty_after() -> float:
        for name in ("pids", "terms"):
            (folder / name).unlink(missing_ok=True)
        up = dynorch.popen("up", file)
        pids = noted(folder, 5)
        eventually(lambda: "ready" in dynorch.said(), within_s=30)
        up.send_signal(signal.SIGINT)
        eventually((folder / "terms").exists, within_s=30)
        assert all(alive(pid) for pid in pids.values())
        up.send_signal(signal.SIGINT)
        began = time.monotonic()
        eventually(lambda: all(zombie(pid) for pid in pids.values()), within_s=30)
        took_s = time.monotonic() - began
        if up.poll() is None:
            up.send_signal(signal.SIGINT)
        up.wait(timeout=30)
        eventually(lambda: dynorch("status", code=None).returncode == 3, within_s=20)
        assert (folder / "terms").read_text() == "TERM\n"
        return took_s

    in_time(empty_after, 2.0)


def test_statement_01_when_stop_returns_nobody_is_left(dynorch):
    """Without a control group, of four kinds that ignore SIGTERM, and of their main process."""
    folder = folder_of(dynorch, "zoo")
    dynorch("up", "-d", dynorch.file(f"""
name = "z"
tree = "walk"
start = {{ settle = "0s" }}
[processes.zoo]
command = {zoo("polite", folder)}
"""))  # fmt: skip
    pids = noted(folder, 5)
    dynorch("stop", "z/zoo")
    assert all(zombie(pid) for pid in pids.values())


def test_statement_52_a_down_in_a_pipe_says_each_second_what_it_waits_for(dynorch):
    folder = folder_of(dynorch, "zoo")
    dynorch("up", "-d", dynorch.file(f"""
name = "z"
start = {{ settle = "0s" }}
stop = {{ grace = "4s", drain = "0s", linger = "0s" }}
[processes.zoo]
command = {zoo("stubborn", folder)}
"""))  # fmt: skip
    pid = noted(folder, 5)["main"]
    said = dynorch("down", timeout=60).stdout
    lines = rf"z/zoo-0 stopping \(pid {pid}\): .*kills the rest in ([\d.]+) s"
    left = [float(each) for each in re.findall(lines, said)]
    assert len(left) >= 3, said
    assert left == sorted(set(left), reverse=True)


def test_statement_50_dependants_first_and_the_replicas_of_a_level_together(dynorch):
    """Each of ten waits for the TERM of all ten before it leaves: one after another would hang."""
    folder = folder_of(dynorch, "level")
    book = dynorch.root / "terms"
    ten = "".join(
        f"""
[processes.p{number}]
command = {zoo("comrade", folder, book, 10)}
"""
        for number in range(10)
    )
    names = json.dumps([f"p{number}" for number in range(10)])
    dynorch("up", "-d", dynorch.file(f"""
name = "l"
start = {{ settle = "0s" }}
{ten}
[processes.front]
command = {zoo("comrade", folder, book, 1)}
depends-on = {names}
"""))  # fmt: skip
    front = dynorch.pid("front")
    noted(folder, 1)
    eventually(lambda: len((folder / "pids").read_text().splitlines()) == 11)
    dynorch("down", timeout=60)
    order = [line.split() for line in book.read_text().splitlines()]
    assert order[0] == ["TERM", str(front)]
    assert order[1] == ["gone", str(front)]
    assert [what for what, _ in order[2:]] == ["TERM"] * 10 + ["gone"] * 10


def test_statement_50_the_frontend_is_gone_before_any_engine_is_told_to_stop(dynorch):
    text = SLOW.replace("[roles.worker]", '[roles.read]\nkind = "prefill"\nengine = "sim"\n'
                        '[roles.worker]\nkind = "decode"')  # fmt: skip
    dynorch("up", "-d", dynorch.file(text + '[kv-transfer]\nconnector = "nixl"\n'))
    dynorch("down", timeout=60)
    gone = decided(dynorch, "agg/frontend-0")[-1]
    assert gone["event"]["type"] == "tree-emptied"
    for role in ("read", "worker"):
        (asked, *_) = since(decided(dynorch, f"agg/{role}-0"), "stop-requested")
        assert asked["now"] >= gone["now"]


def test_a_process_that_asks_for_more_time_after_sigterm_gets_it(dynorch):
    folder = folder_of(dynorch, "slow")
    dynorch("up", "-d", dynorch.file(f"""
name = "d"
stop = {{ grace = "2s", drain = "0s" }}
[processes.p]
command = {zoo("dawdler", folder)}
ready = {{ notify = true }}
"""))  # fmt: skip
    pid = dynorch.pid("p")
    dynorch("stop", "d/p", "--no-wait")
    eventually((folder / "asked").exists, within_s=30)
    began = time.monotonic()

    def extended():
        deadline = dynorch.replica("p")["deadline"]
        return deadline is not None and deadline["in_s"] > 10

    eventually(extended, within_s=30)
    eventually(lambda: time.monotonic() - began > 2.5)  # its shim knows, too
    assert alive(pid)
    (folder / "go").touch()
    eventually(lambda: dynorch.replica("p")["phase"] == "stopped", within_s=30)
    assert (folder / "done").exists()


def test_a_private_directory_for_temporary_files_lives_as_long_as_its_incarnation(dynorch):
    where = dynorch.root / "where"
    command = json.dumps(
        ["sh", "-c", f"echo $TMPDIR $VLLM_RPC_BASE_PATH >> {where}; touch $TMPDIR/x; exec sleep 99"]
    )
    dynorch("up", "-d", dynorch.file(f"""
name = "p"
start = {{ settle = "0s" }}
restart = {{ backoff-initial = "10ms" }}
[processes.p]
command = {command}
"""))  # fmt: skip
    eventually(lambda: len(where.read_text().split()) == 2)
    dynorch("restart", "p/p")
    eventually(lambda: len(where.read_text().split()) == 4)
    first, rpc, second, _ = map(Path, where.read_text().split())
    assert first == rpc != second
    assert not first.exists()
    eventually((second / "x").exists)
    assert second.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(second)) < 107 - 37
    os.kill(dynorch.pid("p"), signal.SIGKILL)
    eventually(lambda: len(where.read_text().split()) == 6, within_s=30)
    assert not second.exists()
    third = Path(where.read_text().split()[-1])
    dynorch("down")
    assert not third.exists()
