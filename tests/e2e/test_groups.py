"""Groups as whole processes: whom a death takes along keeps no pid, everybody else does."""

import os
import signal

from tests.e2e.conftest import zombie
from tests.eventually import eventually

SLEEP = 'command = ["sleep", "1000"]'
TRIO = f"""
name = "g"
restart = {{ backoff-initial = "50ms" }}
[groups.trio]
members  = ["a", "b", "c"]
strategy = "STRATEGY"
[processes.a]
{SLEEP}
[processes.b]
{SLEEP}
[processes.c]
{SLEEP}
"""


def pids(dynorch) -> dict[str, int]:
    """By letter, once all are ready."""

    def ready():
        replicas = {each["name"]: each["replicas"][0] for each in dynorch.topology()["processes"]}
        assert {replica["phase"] for replica in replicas.values()} == {"ready"}
        found = {name: replica["workers"][0]["pid"] for name, replica in replicas.items()}
        return all(found.values()) and found

    return eventually(ready, within_s=30)


def kill(dynorch, before: dict[str, int], name: str) -> dict[str, int]:
    os.kill(before[name], signal.SIGKILL)
    eventually(lambda: dynorch.replica(name)["incarnation"] == 2, within_s=30)
    return pids(dynorch)


def test_statement_42_a_death_restarts_the_rest_of_its_list_and_nobody_before(dynorch):
    dynorch("up", "-d", dynorch.file(TRIO.replace("STRATEGY", "rest-for-one")))
    before = pids(dynorch)
    after = kill(dynorch, before, "b")
    assert after["a"] == before["a"]
    assert not {after["b"], after["c"]} & set(before.values())
    assert all(zombie(before[name]) for name in "bc")
    assert "goes down with g/b-0" in dynorch.replica("c")["reason"]


def test_one_for_all_restarts_all_and_survives_the_daemon(dynorch):
    file = dynorch.file(TRIO.replace("STRATEGY", "one-for-all"))
    dynorch("up", "-d", file)
    before = pids(dynorch)
    dynorch.kill_daemon()
    os.kill(before["b"], signal.SIGKILL)  # nobody is there to take the others along
    eventually(lambda: zombie(before["b"]))
    dynorch("up", "-d", file)
    after = pids(dynorch)
    assert not set(after.values()) & set(before.values())
    assert [dynorch.replica(name)["incarnation"] for name in "abc"] == [2, 2, 2]
