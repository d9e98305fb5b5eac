"""`up` on a changed file, `scale` and rolling restarts, while clients ask without a pause."""

import pytest

from tests.e2e.traffic import Traffic

TWO = """
name  = "agg"
model = "tiny"
[frontend]
port = {port}
[roles.worker]
engine = "sim"
replicas = 2
env = { COLOUR = "red" }
sim = { startup = "50ms", step = "2ms" }
[processes.side]
command = ["sleep", "1000"]
"""
ONE = TWO.replace("replicas = 2", "replicas = 1")


def lives(dynorch) -> dict[str, int]:
    topology = dynorch.topology()
    return {
        f"{role['name']}-{replica['index']}": replica["incarnation"]
        for role in [*topology["roles"], *topology["processes"]]
        for replica in role["replicas"]
    }


def pids(dynorch) -> dict[str, int]:
    topology = dynorch.topology()
    return {
        worker["id"]: worker["pid"]
        for role in [*topology["roles"], *topology["processes"]]
        for replica in role["replicas"]
        for worker in replica["workers"]
    }


def test_statement_61_only_what_a_change_concerns_restarts(dynorch):
    dynorch("up", "-d", dynorch.file(TWO))
    before = pids(dynorch)
    dynorch("up", "-d", dynorch.file(TWO))
    assert pids(dynorch) == before
    budget = TWO.replace("[processes", "[roles.worker.restart]\nintensity = 9\n[processes")
    budget += "[log]\nbackups = 2\n[stop]\ndrain = '20s'\n"
    forecast = dynorch("up", "--dry-run", dynorch.file(budget)).stdout
    assert "restart" not in forecast.splitlines()[0]
    assert "intensity" in forecast
    dynorch("up", "-d", dynorch.file(budget))
    assert pids(dynorch) == before
    asked = budget.replace('"sleep", "1000"', '"sleep", "1001"')
    file = dynorch.file(asked)
    assert dynorch("up", "--dry-run", file).stdout == dynorch("plan", "--diff", file).stdout
    said = dynorch("up", "-d", file).stdout
    assert said.startswith("agg: 1 to restart\n  restart agg/side-0\n")
    assert lives(dynorch) == {"frontend-0": 1, "worker-0": 1, "worker-1": 1, "side-0": 2}
    assert dynorch("plan", "--diff", file).stdout == "agg: nothing changes\n"


@pytest.mark.parametrize("text", [TWO, ONE], ids=["two replicas", "one replica"])
def test_no_request_fails_while_a_role_is_renewed(dynorch, text):
    dynorch("up", "-d", dynorch.file(text))
    with Traffic(dynorch.url) as traffic:
        dynorch("up", "-d", dynorch.file(text.replace("red", "blue")))
        traffic.go_on()
        dynorch("restart", "--rolling", "agg/worker")
        traffic.go_on()
    assert traffic.failures == []
    names = {"frontend-0": 1, "worker-0": 3, "worker-1": 3, "side-0": 1}
    assert lives(dynorch) == {name: names[name] for name in lives(dynorch)}
    assert dynorch.topology()["rollout"] == ""
