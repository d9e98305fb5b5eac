"""`up` on a changed file, `scale` and rolling restarts, while clients ask without a pause."""

import socket
from pathlib import Path

import pytest

from tests.e2e.conftest import Dynorch
from tests.e2e.traffic import Traffic
from tests.eventually import eventually

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
CYCLE = """"1000"]
depends-on = ["other"]
[processes.other]
command = ["cat"]
depends-on = ["side"]
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
    budget += "[log]\nbackups = 2\n[stop]\ndrain = '20s'\n[liveness]\nbusy = '3m'\n"
    budget = budget.replace("[processes.side]", '[processes.side]\nready = { exec = ["true"] }')
    budget += "[processes.side.live]\nexec = ['true']\nperiod = '9s'\n"
    forecast = dynorch("up", "--dry-run", dynorch.file(budget)).stdout
    assert "restart" not in forecast.splitlines()[0]
    for what in ("intensity", "backups", "drain", "busy", "ready", "live"):
        assert what in forecast
    dynorch("up", "-d", dynorch.file(budget))
    assert pids(dynorch) == before
    asked = budget.replace("[processes.side]", '[processes.side]\nenv = { COLOUR = "green" }')
    file = dynorch.file(asked)
    assert dynorch("up", "--dry-run", file).stdout == dynorch("plan", "--diff", file).stdout
    said = dynorch("up", "-d", file).stdout
    assert said.startswith("agg: 1 to restart\n  restart agg/side-0\n")
    assert lives(dynorch) == {"frontend-0": 1, "worker-0": 1, "worker-1": 1, "side-0": 2}
    assert dynorch("plan", "--diff", file).stdout == "agg: nothing changes\n"
    assert dynorch("up", "-d", dynorch.file(asked.replace("red", "blue"))).returncode == 0
    assert lives(dynorch) == {"frontend-0": 1, "worker-0": 2, "worker-1": 2, "side-0": 2}


def test_other_limits_of_logs_count_at_once(dynorch):
    loop = "while :; do echo 0123456789012345678901234567890123456789; sleep 0.01; done"
    text = f'name = "l"\n[processes.p]\ncommand = ["sh", "-c", "{loop}"]\n'
    dynorch("up", "-d", dynorch.file(text))
    pid, log = dynorch.pid("p"), Path(dynorch.replica("p")["workers"][0]["log"])
    small = text + '[log]\nmax-size = "2KiB"\nbackups = 2\n'
    said = dynorch("up", "-d", dynorch.file(small)).stdout
    assert "restart" not in said.splitlines()[0]
    eventually(Path(f"{log}.2").exists, within_s=30)
    assert log.stat().st_size < 2200
    assert dynorch.pid("p") == pid
    dynorch.kill_daemon()
    dynorch("up", "-d", dynorch.file(small.replace("backups = 2", "backups = 1")))
    eventually(lambda: not Path(f"{log}.2").exists(), within_s=30)
    assert dynorch.pid("p") == pid


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


def test_a_change_that_fails_stops_and_what_has_the_old_one_serves_on(dynorch):
    text = ONE
    dynorch("up", "-d", dynorch.file(text))
    faults = text.replace("startup", 'faults = [{ fault = "crash" }], startup')
    faults = faults.replace("[processes", "[roles.worker.restart]\nattempts = 1\n[processes")
    with Traffic(dynorch.url) as traffic:
        failed = dynorch("up", "-d", dynorch.file(faults), code=1)
        assert "failed with its new configuration" in failed.stdout.splitlines()[-1]
        assert dynorch.topology()["rollout"] == "halted"
        assert "failed with its new configuration" in dynorch("status").stdout
        traffic.go_on()
        dynorch("up", "-d", dynorch.file(text))
        traffic.go_on()
    assert traffic.failures == []
    assert dynorch.topology()["rollout"] == ""
    assert dynorch.topology()["health"] == "ready"
    assert dynorch("plan", "--diff", dynorch.file(text)).stdout == "agg: nothing changes\n"


def test_the_next_daemon_goes_on_with_a_change(dynorch):
    dynorch("up", "-d", dynorch.file(TWO))
    file = dynorch.file(TWO.replace("red", "blue").replace("50ms", "1s"))
    up = dynorch.popen("up", "-d", file)
    eventually(lambda: dynorch.replica("worker", 0)["incarnation"] == 2)
    dynorch.kill_daemon()
    up.wait()
    dynorch("up", "-d", file)
    assert lives(dynorch) == {"frontend-0": 1, "worker-0": 2, "worker-1": 2, "side-0": 1}
    assert dynorch.topology()["rollout"] == ""


def test_a_scale_lasts_until_the_file_is_applied_again(dynorch):
    file = dynorch.file(TWO)
    dynorch("up", "-d", file)
    with Traffic(dynorch.url) as traffic:
        dynorch("scale", "worker=3")
        assert dynorch.topology()["scaled"] == ["worker=3 by hand, 2 in the file"]
        dynorch.kill_daemon()
        dynorch("plan", "--diff", file)
        dynorch("scale", "worker=1", code=3)
        dynorch("daemon", "--replace", code=3)
        traffic.go_on()
        assert "stop    agg/worker-2" in dynorch("up", "-d", file).stdout
        dynorch("scale", "agg/worker=1")
        assert lives(dynorch).keys() == {"frontend-0", "worker-0", "side-0"}
        traffic.go_on()
    assert traffic.failures == []
    for wrong, said in (
        ("wroker=1", "did you mean worker?"),
        ("side=2", "plain command"),
        ("worker=0", "from 1 to"),
        ("other/worker=1", "up are: agg"),
    ):
        assert said in dynorch("scale", wrong, code=1).stderr


def test_statement_33_a_failed_replica_starts_again_on_start_and_on_its_own_change(dynorch):
    text = TWO + '[processes.bad]\ncommand = ["no-such-program"]\nstart = { settle = "3s" }\n'
    dynorch("up", "-d", dynorch.file(text), code=1)
    assert lives(dynorch)["bad-0"] == 1
    dynorch("start", "agg/bad", code=1)
    assert lives(dynorch)["bad-0"] == 2
    dynorch("restart", "--rolling", "agg/side", code=None)
    dynorch("scale", "worker=3", code=1)
    other = text.replace('"sleep", "1000"', '"sleep", "1001"')
    assert "no-such-program" in dynorch("up", "-d", dynorch.file(other), code=1).stdout
    assert lives(dynorch)["side-0"] == 3
    assert lives(dynorch)["bad-0"] == 2
    dynorch("up", "-d", dynorch.file(other.replace('"no-such-program"', '"sleep", "1000"')))
    assert lives(dynorch)["bad-0"] == 3
    assert dynorch.replica("bad")["phase"] == "ready"


WRONG = (
    ("replicas = 2", "replicsa = 2", "t.toml:8: roles.worker.replicsa"),
    ("replicas = 2", 'replicas = "2"', "t.toml:8: roles.worker.replicas"),
    ('"1000"]', '"1000"]\ngpus = [7]', "t.toml:13: processes.side.gpus"),
    ('"1000"]', CYCLE, "t.toml:13: processes.side.depends-on"),
    ("port = ", "port = {taken} #", "t.toml:5: frontend.port"),
)
"""Unknown key, wrong type, a GPU that isn't there, a cycle, a port that is taken."""


def test_statement_62_what_is_wrong_is_refused_before_anything_is_touched(dynorch):
    dynorch("up", "-d", dynorch.file(TWO))
    before = pids(dynorch)
    with socket.create_server(("127.0.0.1", Dynorch(dynorch.root).port)) as other:
        taken = str(other.getsockname()[1])
        for was, becomes, said in WRONG:
            file = dynorch.file(TWO.replace(was, becomes.replace("{taken}", taken)))
            refused = dynorch("up", "-d", file, code=None)
            assert refused.returncode in {1, 2}
            assert said in refused.stderr
    assert pids(dynorch) == before
    assert dynorch("plan", "--diff", dynorch.file(TWO)).stdout == "agg: nothing changes\n"


def test_statement_56_a_daemon_that_is_replaced_loses_nothing(dynorch, tmp_path):
    dynorch("up", "-d", dynorch.file(TWO))
    before, old = pids(dynorch), dynorch.daemon_pid()
    with Traffic(dynorch.url) as traffic:
        dynorch("daemon", "--replace")
        assert pids(dynorch) == before
        assert dynorch.daemon_pid() != old
        eventually(lambda: dynorch.topology()["health"] == "ready")
        traffic.go_on()
        # One that can't start, for its code or for what it finds, leaves the other as it is.
        present = dynorch.daemon_pid()
        (tmp_path / "pydantic.py").write_text("raise ImportError('a broken installation')")
        broken = dynorch("daemon", "--replace", code=1, PYTHONPATH=str(tmp_path))
        assert "a broken installation" in broken.stderr
        odd = dynorch.run_dir / "topologies" / "odd.json"
        odd.write_text("{}")
        assert "can't read odd.json" in dynorch("daemon", "--replace", code=1).stderr
        odd.unlink()
        assert dynorch.daemon_pid() == present
        assert pids(dynorch) == before
    assert traffic.failures == []


def test_a_part_is_stopped_dependants_first(dynorch):
    text = TWO + '[processes.late]\ncommand = ["sleep", "1000"]\ndepends-on = ["side"]\n'
    dynorch("up", "-d", dynorch.file(text))
    assert "did you mean agg/side?" in dynorch("drain", "agg/sied", code=1).stderr
    dynorch("stop", "agg/side", "--no-wait")
    eventually(lambda: dynorch.replica("side")["phase"] == "stopped")
    dynorch("start", "agg/side")
    dynorch("stop", "agg")
    stops = [
        line.split()[2]
        for line in dynorch("events", "-n", "200").stdout.splitlines()
        if "stopped: stopped as asked" in line
    ]
    assert stops.index("agg/late-0") < len(stops) - 1 - stops[::-1].index("agg/side-0")
    assert stops.index("agg/frontend-0") < stops.index("agg/worker-0")


def test_a_drain_lets_long_answers_end(dynorch):
    dynorch("up", "-d", dynorch.file(ONE.replace("2ms", "100ms") + "[stop]\ndrain = '100ms'\n"))
    with Traffic(dynorch.url, clients=1) as traffic:
        eventually(lambda: dynorch.engine_workers()[0]["inflight"])
        dynorch("drain", "agg/worker-0", "--no-wait")
        eventually(lambda: traffic.done >= 1)
    assert dynorch.replica("worker")["want"] == "down"
    eventually(lambda: dynorch.replica("worker")["phase"] == "stopped")


def test_requests_wait_for_the_only_one_that_was_asked_to_restart(dynorch):
    """No spare one comes for a plain restart; neither for an engine that needs its GPU."""
    dynorch("up", "-d", dynorch.file(ONE.replace("50ms", "500ms")))
    with Traffic(dynorch.url) as traffic:
        dynorch("restart", "agg/worker")
        traffic.go_on()
        dynorch("restart", "agg/worker")
        traffic.go_on()
    assert traffic.failures == []
    assert lives(dynorch)["worker-0"] == 3


def test_no_request_fails_while_frontends_are_renewed(dynorch):
    """Nor is a connection refused, with one frontend or two: they share the port meanwhile."""
    dynorch("up", "-d", dynorch.file(ONE))
    with Traffic(dynorch.url) as traffic:
        dynorch("up", "-d", dynorch.file(ONE.replace("{port}", "{port}\nretries = 3")))
        traffic.go_on()
        assert lives(dynorch)["frontend-0"] == 2
        dynorch("scale", "frontend=2")
        dynorch("restart", "--rolling", "agg/frontend")
        traffic.go_on()
    assert traffic.failures == []
