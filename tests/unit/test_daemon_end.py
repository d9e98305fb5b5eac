"""When a daemon ends, when it doesn't, and what it makes of its own bugs and of full disks."""

import asyncio
import sys

import pytest

from orchestrator.core.state import State
from orchestrator.daemon import main as module
from orchestrator.daemon import nursery as nursery_module
from orchestrator.daemon.main import Daemon
from orchestrator.daemon.nursery import Nursery
from orchestrator.host.rundir import RunDir, StateDir
from orchestrator.host.zygote_link import ZygoteError
from orchestrator.wire.ids import ReplicaId
from orchestrator.wire.messages import Reply, Verb
from tests.unit.daemon_stage import Loop


class House:
    """A daemon that never served: its parts are there, its sockets are closed."""

    def __init__(self, folder, *, on_demand: bool = True) -> None:
        self.loop = Loop()
        run_dir, state_dir = RunDir(folder / "run"), StateDir(folder / "state")
        run_dir.create()
        state_dir.create()
        self.daemon = Daemon(run_dir, state_dir, on_demand=on_demand)
        self.daemon._serving = True
        self.events: list[tuple[str, str, str]] = []
        self.daemon._publisher.event = self.event
        self.daemon._verbs.answer = self.answer
        self.gate = asyncio.Event()
        self.gate.set()

    def event(self, subject, what, *, reason="", **_) -> None:
        self.events.append((str(subject), what, reason))

    async def answer(self, _verb):
        await self.gate.wait()
        return Reply(code=0)

    def turn(self, seconds: float = 0.0) -> None:
        self.loop.now_s += seconds
        for _ in range(5):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def ask(self, name: str):
        task = self.loop.create_task(self.daemon._answer(Verb(name)))
        self.turn()
        return task

    @property
    def over(self) -> bool:
        return self.daemon._over.is_set()

    def close(self) -> None:
        self.daemon._context.destroy(linger=0)
        self.loop.close()


@pytest.fixture
def house(short_path):
    one = House(short_path)
    yield one
    one.close()


def test_a_verb_read_in_the_pass_that_ended_it_is_left_to_the_next_daemon(house):
    """An `up` that was begun here all the same left its workers to nobody."""
    house.daemon._end_if_idle()
    assert house.ask("up").result() is None


def test_with_nothing_up_it_ends_soon_after_the_last_verb(house):
    house.ask("status")
    assert not house.over
    house.turn(module.IDLE_S + 0.1)
    assert house.over


def test_while_an_up_is_being_answered_it_does_not_end(house):
    house.gate.clear()
    task = house.ask("up")
    house.daemon._end_if_idle()  # the last topology is down
    house.turn(60)
    assert not house.over
    house.gate.set()
    house.turn()
    assert task.done()
    house.turn(module.IDLE_S + 0.1)  # it was refused
    assert house.over


def test_with_a_topology_up_it_stays(house):
    house.daemon._deployments.by_name["agg"] = object()
    house.ask("status")
    house.turn(60)
    assert not house.over


def test_in_the_foreground_it_stays_with_nothing_up(short_path):
    house = House(short_path, on_demand=False)
    house.ask("down")
    house.turn(60)
    assert not house.over
    house.daemon._asked_to_end()
    assert house.over
    house.close()


def test_asked_to_end_while_it_adopts_it_ends_what_it_has_adopted(house):
    house.daemon._serving = False
    house.daemon._asked_to_end()
    assert not house.over
    assert house.daemon._end_asked == 1


def test_a_bug_in_the_loop_ends_it_and_is_told(house, capsys):
    def bug():
        raise AssertionError("impossible")

    house.loop.set_exception_handler(house.daemon._failed)
    house.loop.call_soon(bug)
    house.turn()
    assert house.over
    assert "impossible" in capsys.readouterr().err
    assert "AssertionError: impossible (a bug" in module._bug(house.daemon._bug)


def test_what_nobody_fetched_is_no_bug(house):
    house.loop.set_exception_handler(house.daemon._failed)
    house.loop.call_exception_handler({"message": "never retrieved", "exception": OSError("x")})
    assert not house.over


def test_a_full_disk_costs_a_line_not_the_step(house, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_over", full)
    house.daemon._save(ReplicaId("agg", "worker", 0), State(name="agg/worker-0"))
    ((subject, what, reason),) = house.events
    assert (subject, what) == ("agg/worker-0", "not-saved")
    assert "No space left" in reason


class Gone:
    name = "agg"
    going_down = False


def test_a_late_end_of_a_foreground_up_takes_no_namesake_down(house, monkeypatch):
    down = []
    monkeypatch.setattr(
        house.daemon._deployments, "begin_down", lambda found, at_once: down.append(found)
    )
    old, new = Gone(), Gone()
    house.daemon._deployments.by_name["agg"] = new
    house.daemon._abandoned(old)
    assert down == []
    house.daemon._abandoned(new)
    assert down == [new]


# ---- zygotes -------------------------------------------------------------------------------------


class Link:
    """A zygote that died right after its start; `seen`: what was done to it."""

    pid = 0
    preload_s = 2.0

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen
        self.versions = {"python": "3.11.9"}

    def start(self, profile, python, *_, home) -> None:
        self.seen.append(profile if python == sys.executable else f"{profile} {python}")

    def until_ready(self):
        ready = asyncio.get_running_loop().create_future()
        ready.set_result(None)
        return ready

    def close(self) -> None:
        self.seen.append("closed")


@pytest.fixture
def done(monkeypatch):
    """What was done to zygotes."""
    seen: list[str] = []
    monkeypatch.setattr(nursery_module, "ZygoteLink", lambda *_: Link(seen))
    return seen


def test_each_profile_has_one_zygote(stage, done):
    told: list[dict[str, str]] = []
    nursery = Nursery(stage.run_dir, stage.state_dir, None, told.append)

    def zygote(*args):
        return stage.call(nursery.zygote, *args)

    assert zygote("bare") is zygote("bare")
    assert zygote("vllm") is not zygote("bare")
    assert zygote("vllm", "/v/python") is zygote("vllm", "/v/python") is not zygote("vllm")
    assert done == ["bare", "vllm", "vllm /v/python"]
    found = {"engine": "vllm", "took": "2.0 s", "python": "3.11.9"}
    assert told == [{"interpreter": sys.executable} | found, {"interpreter": "/v/python"} | found]


def test_a_zygote_that_has_died_before_is_not_waited_for(stage, done):
    nursery = Nursery(stage.run_dir, stage.state_dir, None)
    nursery.zygote("bare")
    stage.loop.run_until_complete(nursery.close())
    assert done == ["bare", "closed"]


def test_an_interpreter_that_nothing_names_any_more_is_let_go(stage, done):
    named = {("vllm", "/v/python"), ("vllm", "/w/python")}
    nursery = Nursery(stage.run_dir, stage.state_dir, None, wanted=lambda: named)

    def review():
        stage.call(nursery.review)
        stage.turn()

    for key in [("bare", ""), ("vllm", ""), *sorted(named)]:
        stage.call(nursery.zygote, *key)
    asked, named = named - {("vllm", "/v/python")}, None
    review()
    assert "closed" not in done, "a verb is being answered, and may want it"
    named = asked
    review()
    assert done.count("closed") == 1
    named = asked | {("vllm", "/v/python")}
    stage.call(nursery.zygote, "vllm", "/v/python")
    review()
    assert done.count("vllm /v/python") == 2, "it is wanted again, and comes anew"
    stage.loop.run_until_complete(nursery.close())
    assert done.count("closed") == 5


def test_no_interpreter_is_let_go_while_a_verb_may_want_it(house):
    house.daemon._nursery._links["sim", "/v/python"] = link = Link([])
    house.gate.clear()
    plan = house.ask("plan")
    house.loop.call_soon(house.daemon._nursery.review)
    house.turn()
    assert link.seen == []
    house.gate.set()
    house.turn()
    assert plan.done()
    assert link.seen == ["closed"]


@pytest.mark.parametrize("left", [None, "lives", "probes"])
def test_the_import_path_goes_with_the_last_who_may_need_it(stage, done, left):
    nursery = Nursery(stage.run_dir, stage.state_dir, None)
    nursery.zygote("bare")
    assert (stage.run_dir.code / "orchestrator/host/zygote.py").is_file()
    if left:
        (stage.run_dir.root / left / "somebody").mkdir()
    stage.loop.run_until_complete(nursery.close())
    assert stage.run_dir.code.exists() is (left is not None)


def test_without_a_place_for_the_import_path_there_is_no_zygote(stage, done):
    stage.run_dir.code.write_text("in the way")
    nursery = Nursery(stage.run_dir, stage.state_dir, None)
    with pytest.raises(ZygoteError, match=r"cannot write to .*/code/.*: Not a directory"):
        nursery.zygote("bare")


def test_an_old_zygote_that_will_not_die_is_named(stage, monkeypatch):
    class Old:
        pid = 4711

    monkeypatch.setattr(stage.run_dir, "kill_zygotes", lambda: [Old()])
    nursery = Nursery(stage.run_dir, stage.state_dir, None)
    with pytest.raises(ZygoteError, match="pid 4711"):
        stage.loop.run_until_complete(nursery.end_old())
