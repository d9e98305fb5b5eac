"""Gangs as whole processes: they start together, serve one by one, and end together."""

import contextlib
import json
import os
import signal
import socket

from orchestrator.host import procfs
from orchestrator.host.rundir import RunDir
from orchestrator.wire.ids import LifeId
from tests.e2e import gpus
from tests.e2e.conftest import zombie
from tests.e2e.test_crashes import ASK, answers
from tests.e2e.test_up_down import request
from tests.eventually import eventually

GANG = """
name = "g"
model = "tiny"
[frontend]
port = {port}
routing = "round-robin"
[roles.worker]
engine = "sim"
data-parallel = SIZE
restart = { backoff-initial = "50ms", backoff-max = "50ms" }
sim = { startup = "0s", FAULTS }
"""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def gang(size: int, faults: str = "faults = []") -> str:
    return GANG.replace("SIZE", str(size)).replace("FAULTS", faults)


def workers(dynorch) -> list[dict]:
    return dynorch.replica("worker")["workers"]


def back(dynorch, incarnation: int) -> list[dict]:
    """Wait until this life of the gang serves; its members."""

    def served():
        replica = dynorch.replica("worker")
        return replica["routable"] and replica["incarnation"] == incarnation and replica["workers"]

    return eventually(served, within_s=60)


def started_at(pid: int) -> float:
    """Seconds after boot; the clock of the kernel's ticks."""
    return procfs.stat(pid).starttime * TICK_S


def emptied_at(dynorch, incarnation: int) -> list[float]:
    """When the daemon learnt, member by member, that no process of this life is left."""
    lines = (dynorch.state_dir / "journal.jsonl").read_text().splitlines()
    steps = [each["core"] for each in map(json.loads, lines)
             if each["e"]["subject"] == "g/worker-0" and "core" in each]  # fmt: skip
    return [
        step["now"]
        for step in steps
        if step["event"]["type"] == "tree-emptied" and step["event"]["incarnation"] == incarnation
    ]


def test_statement_37_a_killed_rank_is_replaced_with_all_the_others_and_after_their_end(dynorch):
    dynorch("up", "-d", dynorch.file(gang(8)))
    before = workers(dynorch)
    os.kill(before[5]["pid"], signal.SIGKILL)
    after = back(dynorch, 2)
    old, new = ([worker["pid"] for worker in each] for each in (before, after))
    assert len(set(new)) == 8
    assert not set(old) & set(new)
    assert all(zombie(pid) for pid in old)
    ended = emptied_at(dynorch, 1)
    assert len(ended) == 8
    assert min(started_at(pid) for pid in new) + TICK_S >= max(ended)
    replica = dynorch.replica("worker")
    assert replica["restarts"] == 1
    assert "member 5" in replica["reason"]
    assert answers(dynorch)


def test_statement_38_ranks_are_born_within_a_second_and_meet_at_another_port(dynorch):
    dynorch("up", "-d", dynorch.file(gang(8)))
    ports = [rendezvous(workers(dynorch))]

    def together():
        """A machine that is busy with other things may be late; three times in a row it isn't."""
        incarnation = dynorch.replica("worker")["incarnation"] + 1
        os.kill(workers(dynorch)[0]["pid"], signal.SIGKILL)
        here = back(dynorch, incarnation)
        assert {LifeId.parse(worker["id"]).incarnation for worker in here} == {incarnation}
        ports.append(rendezvous(here))
        births = [started_at(worker["pid"]) for worker in here]
        return max(births) - min(births) <= 1.0

    assert any(together() for _ in range(3))
    assert len(set(ports)) == len(ports)


def rendezvous(members: list[dict]) -> int:
    (port,) = {worker["ports"]["rendezvous"] for worker in members}
    return port


def test_requests_reach_every_rank_of_a_gang(dynorch):
    dynorch("up", "-d", dynorch.file(gang(3)))
    for _ in range(6):
        assert request(dynorch, "/v1/completions", ASK)[0] == 200

    def shared():
        """Two each, and what each had of its own before."""
        counts = {worker["requests"] for worker in workers(dynorch)}
        return len(counts) == 1 and min(counts) >= 3

    eventually(shared)


def test_statement_40_a_rank_out_of_memory_twice_fails_the_whole_gang(dynorch):
    fault = 'faults = [{ fault = "crash", member = 2, line = "torch.OutOfMemoryError: CUDA out of'
    failed = dynorch("up", "-d", dynorch.file(gang(4, f'{fault} memory" }}]')), code=1)
    assert "out of memory" in (failed.stderr + failed.stdout).lower()
    replica = dynorch.replica("worker")
    assert (replica["phase"], replica["cause"]) == ("failed", "oom-load")
    assert replica["incarnation"] == 2
    assert [worker["pid"] for worker in replica["workers"]] == [None] * 4
    assert len(emptied_at(dynorch, 1)) == len(emptied_at(dynorch, 2)) == 4


def test_statement_39_three_ranks_that_die_together_are_one_failure(dynorch):
    dynorch("up", "-d", dynorch.file(gang(4)))
    for worker in workers(dynorch)[:3]:
        with contextlib.suppress(ProcessLookupError):  # it went down with the first
            os.kill(worker["pid"], signal.SIGKILL)
    back(dynorch, 2)
    assert dynorch.replica("worker")["restarts"] == 1
    assert "failure 1 in a row" in dynorch("events").stdout
    assert "failure 2 in a row" not in dynorch("events").stdout


def test_a_rank_that_cannot_be_born_takes_the_others_with_it(dynorch):
    folder = RunDir(dynorch.run_dir)
    folder.create()
    rubble = folder.life(LifeId.parse("g/worker-0.2#1"))
    file = dynorch.file("name = 'hold'\n[processes.p]\ncommand = ['sleep', '1000']\n", "hold.toml")
    dynorch("up", "-d", file)  # a daemon that starts removes rubble: this must come after that
    rubble.mkdir(mode=0o700)
    dynorch("up", "-d", dynorch.file(gang(4)))
    replica = next(r for r in dynorch.topology("g")["roles"] if r["name"] == "worker")["replicas"]
    assert (replica[0]["incarnation"], replica[0]["restarts"]) == (2, 1)
    assert len(emptied_at(dynorch, 1)) == 3, "the one that wasn't born has no tree"


def test_a_daemon_killed_under_a_gang_adopts_it_with_its_port(dynorch):
    file = dynorch.file(gang(3))
    dynorch("up", "-d", file)
    before = [(worker["pid"], worker["ports"]) for worker in workers(dynorch)]
    dynorch.kill_daemon()
    dynorch("up", "-d", file)
    assert [(worker["pid"], worker["ports"]) for worker in workers(dynorch)] == before
    os.kill(before[1][0], signal.SIGKILL)
    assert rendezvous(back(dynorch, 2)) != before[0][1]["rendezvous"]


def test_a_taken_port_names_its_holder(dynorch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        dynorch("up", "-d", dynorch.file(f"""
name = "p"
restart = {{ backoff-initial = "10ms", backoff-max = "10ms", attempts = 1, intensity = 0 }}
[processes.server]
command = ["sh", "-c", "sleep 0.2; echo 'bind: 127.0.0.1:{port}: Address already in use'; exit 1"]
"""), code=None)  # fmt: skip
        eventually(lambda: dynorch.replica("server")["phase"] == "failed", within_s=30)
    replica = dynorch.replica("server")
    assert (
        f"port {port} is in use by pid {os.getpid()} (" in replica["reason"] + replica["evidence"]
    )


def test_a_gang_waits_for_the_gpus_of_all_its_ranks(dynorch):
    fake = gpus.given(dynorch, 2)
    text = gang(2, "pinned = true").replace("[roles.worker]", "[roles.worker]\ngpus = 1")
    dynorch("up", "-d", dynorch.file(text + '[gpu]\ninterval = "50ms"\n'))
    before = workers(dynorch)
    assert [worker["gpus"] for worker in before] == [["0"], ["1"]]
    fake.hold(1, 70.0)
    os.kill(before[0]["pid"], signal.SIGKILL)

    def held():
        replica = dynorch.replica("worker")
        return replica["phase"] == "waiting" and "GPU 1 (GPU-1-fake)" in replica["reason"]

    eventually(held, within_s=30)
    assert dynorch.replica("worker")["incarnation"] == 1, "neither of them, though GPU 0 is free"
    fake.free(1)
    back(dynorch, 2)
