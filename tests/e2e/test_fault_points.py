"""A daemon killed in each named moment, and the next one: nothing is lost, nothing is there twice.

One world is shared by all cases, so `ticker` outlives every daemon of this file with one pid and
without a gap in its log. Each case leaves all as it found it; one that can't fails alone.
"""

import os
import re
import signal
from pathlib import Path

import pytest

from orchestrator.host import fault_points
from tests.e2e.conftest import alive, zombie
from tests.e2e.narrow import FAMILY, Scene
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = [
    "supervisor.decided", "disk.drafted", "supervisor.saved", "supervisor.published",
    "supervisor.recorded", "supervisor.performed-one", "supervisor.performed-all",
    "supervisor.settled",
]  # fmt: skip
UNHEARD = {"supervisor.decided", "disk.drafted"}
"""A request is lost with the daemon that had not written it down; a fact is found again."""

BIRTH = [
    "launcher.life-made", "launcher.birth-asked", "launcher.birth-heard",
    "launcher.shim-connected", "zygote.forked", "shim.recorded", "shim.answered", "shim.forked",
]  # fmt: skip
END = [
    "launcher.exit-heard", "launcher.end-heard", "launcher.end-posted", "launcher.life-removed",
    "shim.main-reaped", "shim.exit-told", "shim.tree-empty", "shim.end-recorded", "shim.end-told",
]  # fmt: skip
CRASHES = [*SUPERVISOR, *BIRTH, *END, "launcher.kill-given", "shim.kill-begun"]
RESTARTS = [
    *SUPERVISOR,
    "launcher.stop-given",
    "shim.stop-heard",
    "shim.stop-done",
    "shim.exit-told",
]
STOPS = [*SUPERVISOR, "launcher.stop-given", "shim.stop-done", "shim.end-told"]
ARRIVALS = ["deployments.written", "supervisor.saved", "launcher.birth-heard"]
DEPARTURES = [
    "deployments.down-written", "deployments.state-removed", "deployments.forgotten",
    "supervisor.saved",
]  # fmt: skip
IN_ORDER = [
    "deployments.stop-written", "supervisor.saved", "launcher.stop-given", "shim.stop-done",
    "launcher.life-removed",
]  # fmt: skip
GIVEN_UP = ["failures.noted", "failures.written"]
STARTS = [name for name in fault_points.POINTS if name.startswith(("daemon.", "adoption."))]


@pytest.fixture(scope="module")
def scene(dynorch_factory):
    made = Scene(dynorch_factory())
    try:
        made.settle()
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def untouched(scene):
    """Whatever is done, the ticker doesn't notice."""
    scene.settle()
    before = scene.main_pid("main/ticker")
    yield
    after = scene.ready("main/ticker")
    assert (after.workers[0].pid, after.incarnation, after.restarts) == (before, 1, 0)
    assert len(scene.tree("ticker")) == 1
    scene.no_tick_is_lost()
    scene.last_words_are_there()


def die_at(scene, point: str, deed) -> None:
    """Do something that brings the daemon to the point, and start the next daemon."""
    pid = scene.pid
    scene.arm(point, pid)
    asked = deed()
    eventually(lambda: zombie(pid), within_s=20)
    if asked is not None:
        asked.close()
    assert not scene.fault.exists()
    assert scene.start() == "ready"


def comes_back(scene, before, restarts: int):
    """The next life is ready, alone, and counted as it should be."""

    def back():
        now = scene.ready("main/mortal")
        lives = now.incarnation - before.incarnation
        assert 1 <= lives <= 2  # one that was ordered and never born has had its number, too
        assert now.restarts == before.restarts + restarts
        present = scene.tree("mortal")
        assert {one.incarnation for one in present} == {now.incarnation}
        assert len(present) == FAMILY
        assert scene.lines("mortal")[-1].startswith(b"begin")
        return now

    return eventually(back, within_s=20)


@pytest.mark.parametrize("point", CRASHES)
def test_statement_53_a_crash_is_handled_once_wherever_the_daemon_dies(scene, point):
    before = scene.ready("main/mortal")
    main = before.workers[0].pid
    die_at(scene, point, lambda: os.kill(main, signal.SIGTERM))
    now = comes_back(scene, before, restarts=1)
    assert "code 7" in now.reason


@pytest.mark.parametrize("point", RESTARTS)
def test_statement_53_a_restart_is_done_once_or_not_at_all(scene, point):
    before = scene.ready("main/mortal")
    die_at(scene, point, lambda: scene.tell("restart", target="main/mortal"))
    if point in UNHEARD:
        now = scene.ready("main/mortal")
        assert (now.incarnation, now.workers[0].pid) == (before.incarnation, before.workers[0].pid)
    else:
        comes_back(scene, before, restarts=0)


@pytest.mark.parametrize("point", STOPS)
def test_statement_53_a_stop_is_done_or_not_at_all(scene, point):
    before = scene.ready("main/mortal")
    die_at(scene, point, lambda: scene.tell("stop", target="main/mortal"))
    if point in UNHEARD:
        assert scene.main_pid("main/mortal") == before.workers[0].pid
        return
    eventually(lambda: scene.replica("main/mortal").phase == "stopped", within_s=20)
    assert scene.tree("mortal") == []


@pytest.mark.parametrize("point", ARRIVALS)
def test_statement_53_what_was_to_come_comes(scene, point):
    die_at(scene, point, lambda: scene.tell("up", file=str(scene.files["other"])))
    scene.ready("other/two")
    assert len(scene.tree("one")) == len(scene.tree("two")) == 1
    scene.call("down", topology="other")
    eventually(lambda: "other/one" not in scene.replicas(), within_s=20)
    assert scene.tree("one") == scene.tree("two") == []


@pytest.mark.parametrize("point", DEPARTURES)
def test_statement_53_what_was_to_go_goes(scene, point):
    scene.call("up", file=str(scene.files["other"]))
    scene.ready("other/two")
    die_at(scene, point, lambda: scene.tell("down", topology="other"))
    eventually(lambda: "other/one" not in scene.replicas(), within_s=20)
    assert scene.tree("one") == scene.tree("two") == []
    run_dir = scene.dynorch.run_dir
    assert not [path for path in run_dir.glob("*/*") if "other" in path.name]


@pytest.mark.parametrize("point", IN_ORDER)
def test_statement_53_a_stop_in_order_is_carried_to_its_end(scene, point):
    """`two` needs `one`: it is asked first, and who asks `one` is the next daemon."""
    scene.call("up", file=str(scene.files["other"]))
    scene.ready("other/two")
    die_at(scene, point, lambda: scene.tell("stop", target="other"))
    for name in ("other/two", "other/one"):
        eventually(lambda name=name: scene.replica(name).phase == "stopped", within_s=20)
    assert scene.tree("one") == scene.tree("two") == []
    scene.call("down", topology="other")
    eventually(lambda: "other/one" not in scene.replicas(), within_s=20)


@pytest.mark.parametrize("point", GIVEN_UP)
def test_who_is_given_up_is_told_once_wherever_the_daemon_dies(scene, point):
    before = len(scene.failures())
    die_at(scene, point, lambda: scene.tell("up", file=str(scene.files["doomed"])))
    scene.call("down", topology="doomed")
    eventually(lambda: "doomed/one" not in scene.replicas(), within_s=20)
    (told,) = scene.failures()[before:]
    assert (told["replica"], told["exit_code"]) == ("doomed/one-0", 2)
    assert (told["gpu_memory"] is None) is (point == "failures.noted")


@pytest.mark.parametrize("point", STARTS)
def test_statement_53_a_daemon_that_dies_while_it_adopts_loses_nothing(scene, point):
    """The first one was killed, the second dies at the point, the third must know everything."""
    before = scene.ready("main/mortal")
    main = before.workers[0].pid
    scene.kill()
    os.kill(main, signal.SIGTERM)
    eventually(lambda: scene.tree("mortal") == [])
    scene.arm(point, 0)
    assert scene.start() == ""
    assert not scene.fault.exists()
    assert scene.start() == "ready"
    assert "code 7" in comes_back(scene, before, restarts=1).reason


def test_statement_54_the_log_is_written_and_rotated_while_no_daemon_lives(scene):
    pid = scene.main_pid("main/ticker")
    scene.kill()
    last = scene.no_tick_is_lost()
    eventually(lambda: scene.no_tick_is_lost() > last + 120, within_s=30)  # 40 lines a file
    assert alive(pid)
    assert scene.start() == "ready"
    assert scene.main_pid("main/ticker") == pid


@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, "code 7"), (signal.SIGKILL, "KILL")])
def test_statement_55_a_worker_that_dies_meanwhile_is_seen_with_its_exit(scene, number, said):
    before = scene.ready("main/mortal")
    main = before.workers[0].pid
    scene.kill()
    os.kill(main, number)
    if number == signal.SIGKILL:
        scene.speechless.add(main)
    eventually(lambda: scene.tree("mortal") == [])
    assert scene.start() == "ready"
    assert said in comes_back(scene, before, restarts=1).reason


def test_the_journal_of_all_these_daemons_decides_the_same_again(scene):
    told = scene.dynorch("events", "--verify").stdout
    assert "all as recorded" in told
    assert "can't be checked" not in told
    assert int(told.split()[0]) > 0


def test_every_point_is_in_the_code_and_tried():
    found: list[str] = []
    for path in (ROOT / "orchestrator").rglob("*.py"):
        found += re.findall(r'reached\("([a-z.-]+)"\)', path.read_text())
    assert sorted(set(found) - {"rehearsal"}) == sorted(fault_points.POINTS)
    tried = {*CRASHES, *RESTARTS, *STOPS, *ARRIVALS, *DEPARTURES, *IN_ORDER, *GIVEN_UP, *STARTS}
    assert tried == set(fault_points.POINTS)
    assert len(fault_points.POINTS) >= 30


def test_a_point_does_nothing_unless_all_is_right(tmp_path, monkeypatch):
    killed: list[int] = []
    monkeypatch.setattr(fault_points, "_kill", killed.append)
    file = tmp_path / "fault"
    file.write_text("disk.drafted 0\n")
    fault_points.reached("disk.drafted")  # no variable
    monkeypatch.setattr(fault_points, "_file", str(file))
    fault_points.reached("supervisor.saved")
    file.chmod(0o666)
    fault_points.reached("disk.drafted")
    assert killed == []
    file.chmod(0o600)
    fault_points.reached("disk.drafted")
    fault_points.reached("disk.drafted")
    assert killed == [os.getpid()]
    assert not file.exists()
