"""The ports that workers are given: their own for all their lives, unless a stranger takes one."""

import os
import signal
import socket

from tests.eventually import eventually

PAIR = """
name = "pd"
model = "tiny"
restart = { backoff-initial = "BACKOFF", backoff-max = "BACKOFF", jitter = 0.0 }
[frontend]
port = {port}
[roles.prefill]
kind = "prefill"
engine = "sim"
sim = { startup = "0s" }
[roles.decode]
kind = "decode"
engine = "sim"
sim = { startup = "0s" }
[kv-transfer]
connector = "nixl"
"""


def pair(dynorch, backoff="50ms"):
    return dynorch.file(PAIR.replace("BACKOFF", backoff))


def port(dynorch, role) -> int:
    return dynorch.replica(role)["workers"][0]["ports"]["side-channel"]


def back(dynorch, role, incarnation) -> None:
    def served():
        replica = dynorch.replica(role)
        return replica["routable"] and replica["incarnation"] == incarnation

    eventually(served, within_s=60)


def listen(number: int) -> socket.socket | None:
    try:
        return socket.create_server(("127.0.0.1", number))
    except OSError:
        return None


def test_a_restarted_worker_gets_the_ports_it_had_before(dynorch):
    file = pair(dynorch)
    dynorch("up", "-d", file)
    before = {role: port(dynorch, role) for role in ("prefill", "decode")}
    assert len(set(before.values())) == 2
    for incarnation in (2, 3):
        os.kill(dynorch.pid("prefill"), signal.SIGKILL)
        back(dynorch, "prefill", incarnation)
        assert {role: port(dynorch, role) for role in before} == before
        if incarnation == 2:
            dynorch.kill_daemon()
            dynorch("up", "-d", file)


def test_a_port_that_a_stranger_took_is_told_and_another_is_used(dynorch):
    dynorch("up", "-d", pair(dynorch, "2s"))
    before = port(dynorch, "prefill")
    os.kill(dynorch.pid("prefill"), signal.SIGKILL)
    with eventually(lambda: listen(before)):
        back(dynorch, "prefill", 2)
    assert port(dynorch, "prefill") != before
    told = next(line for line in dynorch("events").stdout.splitlines() if "port-moved" in line)
    assert f"port {before} is in use by pid {os.getpid()} (" in told
