"""What operators are answered: refusals that touch nothing, and requests that reach the core."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core.inventory import Inventory
from orchestrator.daemon import changes
from orchestrator.daemon import verbs as module
from orchestrator.daemon.foreground import Foreground
from orchestrator.daemon.targets import matching
from orchestrator.topology.load import FILE_BYTES_MAX
from orchestrator.wire.messages import Verb
from tests.unit.daemon_stage import AGG, CHAIN


class Desk:
    """The verbs over a stage, and the topology files of an operator."""

    def __init__(self, stage, folder) -> None:
        self.stage, self.folder = stage, folder
        self.watched: list[tuple[str, int]] = []
        self.objections: list[str] = []
        self.verbs = module.Verbs(
            stage.supervisor, stage.deployments, lambda: {"daemon": {}}, self.watch, self.machine,
            preflight=self.preflight,
        )  # fmt: skip

    async def preflight(self, _topology, _plan, cwd) -> list[str]:
        assert cwd == str(self.folder)
        return self.objections

    async def machine(self) -> Inventory:
        return Inventory()

    def watch(self, found, pid) -> None:
        self.watched.append((found.name, pid))

    def __call__(self, name, **args):
        reply = self.stage.loop.run_until_complete(self.verbs.answer(Verb(name, args)))
        self.stage.turn()
        return reply

    def up(self, text, name="t.toml", **args):
        path = self.folder / name
        path.write_text(text)
        return self("up", **({"file": str(path), "engine": "sim"} | args))


@pytest.fixture
def desk(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "objections", lambda *_: [])
    return Desk(stage, tmp_path)


def test_what_an_engine_objects_to_is_no_topology(desk):
    desk.objections = ["t.toml:3: roles.w.vllm.x: no", "t.toml:4: roles.w.vllm.y: no"]
    reply = desk.up(AGG)
    assert (reply.code, reply.text) == (2, "\n".join(desk.objections))
    assert desk.stage.ordered() == []
    desk.objections = []
    desk.up(AGG)
    desk.objections = ["no"]
    assert desk.up(AGG.replace("replicas = 2", "replicas = 3")).code == 2
    assert desk("difference", file=str(desk.folder / "t.toml"), engine="sim").code == 2


def test_up_starts_it_and_says_its_name(desk):
    reply = desk.up(AGG)
    assert (reply.code, reply.data["topology"], reply.data["adopted"]) == (0, "agg", False)
    assert [change["kind"] for change in reply.data["changes"]] == ["add"] * 3
    assert len(desk.stage.ordered()) == 3
    assert desk.watched == []


def test_a_foreground_up_is_watched(desk):
    desk.up(AGG, watch_pid=77)
    assert desk.watched == [("agg", 77)]


def test_up_again_unchanged_touches_what_runs_not_at_all(desk):
    desk.stage.serve(AGG)
    desk.stage.forget()
    assert desk.up(AGG).data["adopted"]
    assert desk.stage.log == []


def test_up_again_starts_what_is_at_rest(desk):
    desk.up(CHAIN)
    unit = desk.stage.unit("chain/a-0")
    desk.stage.born(unit)
    desk("stop", target="chain/a")
    desk.stage.empty(unit)
    assert desk.stage.phase("chain/a-0") == "stopped"
    desk.stage.forget()
    assert desk.up(CHAIN).code == 0
    assert desk.stage.ordered() == ["chain/a-0"]


def gave_up(desk, text: str):
    """Up, with `chain/a` given up and all others at rest."""
    desk.up(text)
    unit = desk.stage.unit("chain/a-0")
    desk.stage.born(unit)
    desk.stage.post(unit, e.MainExited, 2 << 8)
    desk.stage.empty(unit, 2 << 8)
    assert desk.stage.phase("chain/a-0") == "failed"
    desk.stage.forget()
    return unit


@pytest.mark.parametrize(
    ("was", "becomes", "starts"),
    [
        ("", "", True),  # nothing has changed: it is asked for once more
        ('command = ["c"]', 'command = ["other"]', False),
        ('command = ["c"]', 'command = ["c"]\nstop = { grace = "61s" }', False),
        ('command = ["a"]', 'command = ["other"]', True),
        ('"never"', '"never", attempts = 9', True),
    ],
)
def test_statement_33_who_failed_starts_again_with_a_change_of_its_own(desk, was, becomes, starts):
    text = CHAIN.replace('command = ["a"]', 'command = ["a"]\nrestart = { policy = "never" }')
    unit = gave_up(desk, text)
    before = unit.state.incarnation
    assert desk.up(text.replace(was, becomes)).code == 0
    assert (unit.state.incarnation > before) == starts
    assert (desk.stage.phase("chain/a-0") == "failed") != starts


def test_statement_61_up_again_repeats_nothing_that_is_done(desk):
    text = CHAIN.replace('command = ["a"]', 'command = ["a"]\noneshot = true')
    desk.up(text)
    unit = desk.stage.unit("chain/a-0")
    desk.stage.born(unit)
    desk.stage.post(unit, e.MainExited, 0)
    desk.stage.empty(unit, 0)
    assert desk.stage.phase("chain/a-0") == "completed"
    desk.up(text)
    assert (desk.stage.phase("chain/a-0"), unit.state.incarnation) == ("completed", 1)
    desk.up(text.replace('command = ["a"]', 'command = ["other"]'))
    assert unit.state.incarnation == 2


def test_everything_that_is_wrong_with_a_file_is_said_at_once(desk):
    reply = desk.up(AGG.replace("kind", "knid").replace("port", "prot"))
    assert reply.code == 2
    assert len(reply.text.splitlines()) >= 2
    assert desk.stage.deployments.by_name == {}
    assert list(desk.stage.run_dir.topologies.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b"# " + b"x" * FILE_BYTES_MAX, "larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_had_is_refused(desk, tmp_path, data, said):
    path = tmp_path / "f.toml"
    if data is not None:
        path.write_bytes(data)
    reply = desk("up", file=str(path))
    assert reply.code == 2
    assert said in reply.text


def test_a_mark_of_the_byte_order_is_no_mistake(desk, tmp_path):
    path = tmp_path / "f.toml"
    path.write_bytes(b"\xef\xbb\xbf" + CHAIN.encode())
    assert desk("up", file=str(path)).code == 0


def test_what_the_machine_objects_to_is_refused_before_anything_starts(desk, monkeypatch):
    monkeypatch.setattr(changes, "objections", lambda *_: ["port taken", "no vLLM"])
    reply = desk.up(AGG)
    assert (reply.code, reply.text) == (1, "port taken\nno vLLM")
    assert desk.stage.log == []


def test_two_topologies_may_not_share_a_port(desk):
    desk.up(AGG)
    reply = desk.up(AGG.replace('"agg"', '"other"'))
    assert reply.code == 1
    assert "port 8000 is that of agg" in reply.text
    assert list(desk.stage.deployments.by_name) == ["agg"]
    assert desk.up(AGG.replace('"agg"', '"other"').replace("8000", "8001")).code == 0


def test_a_full_disk_refuses_an_up(desk, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.daemon.deployments.write_atomically", full)
    reply = desk.up(AGG)
    assert reply.code == 1
    assert "No space left" in reply.text
    assert desk.stage.deployments.by_name == {}
    assert desk.stage.supervisor.units == {}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("up", {}),
        ("up", {"file": 3}),
        ("up", {"file": "x", "engine": "magic"}),
        ("down", {"topology": ["agg"]}),
        ("down", {"now": "yes"}),
        ("stop", {}),
        ("stop", {"target": 1}),
        ("fly", {}),
    ],
)
def test_arguments_that_make_no_sense_are_refused(desk, name, args):
    reply = desk(name, **args)
    assert reply.code == 2
    assert name in reply.text


FILE, TARGET = {"file": "/x"}, {"target": "agg"}
NEEDS = {
    "up": FILE, "difference": FILE, "scale": {"replicas": {"worker": 1}}, "down": {},
    "start": TARGET, "stop": TARGET, "restart": TARGET, "drain": TARGET,
}  # fmt: skip
"""What each verb must be told; `status` reads nothing of what it is told."""


@pytest.mark.parametrize("what", ["command", "argv", "env", "cwd", "path", "text"])
@pytest.mark.parametrize("name", NEEDS)
def test_statement_66_no_verb_brings_a_command_line_an_environment_or_a_path(desk, name, what):
    """What runs is said by the file alone, which `up` names and the daemon itself reads."""
    assert set(desk.verbs._by_name) == {*NEEDS, "status"}
    reply = desk(name, **NEEDS[name], **{what: "x"})
    assert reply.code == 2
    assert what in reply.text


def test_status_is_the_snapshot(desk):
    assert desk("status").data == {"daemon": {}}


def test_down_of_nothing_is_done_at_once(desk):
    assert desk("down").data == {"topologies": []}


def test_down_of_an_unknown_topology_names_those_that_are_up(desk):
    desk.up(AGG)
    reply = desk("down", topology="ag")
    assert (reply.code, reply.text) == (1, "no topology 'ag' is up; up are: agg")


def test_while_it_goes_down_nothing_else_may_be_asked_of_it(desk):
    desk.up(AGG)
    assert desk("down", topology="agg").data == {"topologies": ["agg"]}
    for name, args in (("start", {"target": "agg/worker"}), ("restart", {"target": "agg"})):
        assert "is going down" in desk(name, **args).text
    assert "is going down" in desk.up(AGG).text
    assert desk("down", now=True).code == 0


def test_restart_reaches_the_replicas_that_a_target_names(desk):
    desk.stage.serve(AGG)
    desk.stage.forget()
    reply = desk("restart", target="agg/worker")
    assert reply.data == {"replicas": ["agg/worker-0", "agg/worker-1"]}
    assert sorted(desk.stage.ordered(a.Drain)) == ["agg/worker-0", "agg/worker-1"]


def test_a_target_that_names_nothing_gets_to_know_what_there_is(desk):
    assert "there is: nothing" in desk("stop", target="agg").text
    desk.up(CHAIN)
    assert "chain/a-0, chain/b-0, chain/c-0" in desk("stop", target="chain/d").text


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("agg", 3),
        ("agg/worker", 2),
        ("agg/worker-1", 1),
        ("agg/worker-1.0", 1),
        ("agg/worker-1.1", 0),
        ("agg/worker-1.", 0),
        ("agg/worker-2", 0),
        ("agg/", 0),
        ("", 0),
        (".", 0),
        ("agg.0", 0),
        ("worker", 0),
    ],
)
def test_targets(stage, target, count):
    stage.up(AGG)
    assert len(matching(stage.supervisor.units.values(), target)) == count


# ---- a foreground `up` ---------------------------------------------------------------------------


@pytest.fixture
def foreground(stage):
    one = Foreground()
    yield one
    stage.call(one.close)


def test_the_end_of_a_watched_process_is_told_once(stage, foreground):
    ended = []
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    stage.call(foreground.watch, child.pid, lambda: ended.append("ended"))
    assert ended == []
    child.communicate(b"\n")
    stage.turn()
    stage.turn()
    assert ended == ["ended"]
    assert foreground._pidfds == set()


def test_a_process_that_has_gone_already_is_told_at_once(stage, foreground):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    child.wait()
    ended = []
    stage.call(foreground.watch, child.pid, lambda: ended.append("ended"))
    assert ended == ["ended"]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open(stage, foreground):
    before = open_files()
    stage.call(foreground.watch, os.getpid(), lambda: None)
    stage.call(foreground.watch, os.getpid(), lambda: None)
    assert open_files() == before + 2
    stage.call(foreground.close)
    assert open_files() == before


def test_an_event_of_the_old_daemon_is_no_request(stage):
    """`request` counts what is queued, whoever queued it."""
    stage.up(CHAIN)
    unit = stage.unit("chain/a-0")

    def adopt():
        stage.supervisor.post(unit.id, e.StartRequested(unit.state.intent + 1))
        stage.supervisor.request(unit, e.StopRequested)

    stage.call(adopt)
    assert unit.state.want.value == "down"
