"""What workers say: present lives are believed, stale ones aren't, and silence is judged."""

import re
from pathlib import Path

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.daemon import snapshot
from orchestrator.wire import messages as m
from tests.unit.daemon_stage import AGG, CHAIN


@pytest.fixture
def worker(stage):
    stage.serve(AGG)
    stage.forget()
    return stage.unit("agg/worker-0")


def keep_beating(stage, seconds: float, *silent: str) -> None:
    """Everybody beats each second, but for those."""
    for _ in range(round(seconds)):
        for unit in stage.deployments.units("agg"):
            if str(unit.id) not in silent:
                stage.beat(unit)
        stage.after(1.0)


def test_ready_makes_it_routable_with_the_models_it_names(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.hello(unit)
    assert stage.phase("agg/worker-0") == "starting"
    stage.say(unit, m.Ready(stage.life(unit), ["m", "lora"]))
    assert stage.phase("agg/worker-0") == "ready"
    assert stage.tables[-1].routes[0].models == ["m", "lora"]


def test_a_worker_that_was_ready_before_we_came_says_so_in_its_hello(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.hello(unit, ready=True)
    assert stage.phase("agg/worker-0") == "ready"


def test_a_ready_that_went_to_a_dying_daemon_is_learnt_from_the_beat(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.beat(unit, ready=False)
    assert stage.phase("agg/worker-0") == "starting"
    stage.beat(unit, ready=True)
    assert stage.phase("agg/worker-0") == "ready"


def test_a_stranger_that_beats_is_acknowledged_and_greeted(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.beat(unit, seq=7, ready=False)
    life = stage.life(unit)
    assert stage.sent == [(life, m.Ack(7)), (life, m.Greet())]
    stage.hello(unit)
    stage.sent.clear()
    stage.beat(unit, seq=8, ready=False)
    assert stage.sent == [(life, m.Ack(8))]


@pytest.mark.parametrize("incarnation", [2, 99])
def test_another_life_changes_nothing_and_gets_no_answer(stage, worker, incarnation):
    life = str(worker.id.life(0, incarnation))
    for message in (
        m.Ready(life, ["evil"]),
        m.Progress(life, "loading", 5),
        m.Drained(life),
        m.Bye(life, "crash", "no"),
    ):
        stage.say(worker, message, incarnation)
    stage.hello(worker, incarnation=incarnation)
    stage.beat(worker, incarnation=incarnation, tokens=9)
    assert stage.sent == []
    assert stage.log == []
    assert worker.heard[0].hello.models == ["m"]


def test_a_member_or_a_replica_that_is_not_there_is_no_error(stage, worker):
    life = worker.id.life(5, 1)
    stage.call(stage.hearing.take, stage, life, m.Ready(str(life), []))
    other = type(worker.id)("agg", "nobody", 0).life(0, 1)
    stage.call(stage.hearing.take, stage, other, m.Ready(str(other), []))
    assert stage.log == []


def test_progress_is_a_fact_for_people(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.forget()
    stage.say(unit, m.Progress(stage.life(unit), "loading weights", 40.0))
    assert (unit.heard[0].progress, unit.heard[0].percent) == ("loading weights", 40.0)
    assert stage.log == []


def test_last_words_are_kept_for_the_reason(stage, worker):
    stage.say(worker, m.Bye(stage.life(worker), "engine-died", "EngineCore died"))
    assert worker.state.members[0].bye_text == "EngineCore died"


def test_a_drained_worker_is_stopped(stage, worker):
    stage.call(stage.supervisor.request, worker, e.StopRequested)
    assert stage.ordered(a.Drain) == ["agg/worker-0"]
    stage.say(worker, m.Drained(stage.life(worker)))
    assert stage.ordered(a.Stop) == ["agg/worker-0"]


def test_silence_takes_it_from_the_table_and_a_beat_brings_it_back(stage, worker):
    keep_beating(stage, 4, "agg/worker-0")
    assert worker.routable
    keep_beating(stage, 3, "agg/worker-0")
    assert not worker.routable
    assert [route.life for route in stage.tables[-1].routes] == ["agg/worker-1.0#1"]
    assert stage.phase("agg/worker-0") == "ready"
    stage.beat(worker)
    assert worker.routable
    assert len(stage.tables[-1].routes) == 2


def test_silence_for_too_long_is_death(stage, worker):
    keep_beating(stage, 32, "agg/worker-0")
    assert stage.phase("agg/worker-0") in {"stopping", "waiting"}
    reason = worker.state.fault.reason
    assert reason.cause.value == "unhealthy"
    assert "agg/worker-0.0 sent no heartbeat for 3" in reason.sentence
    assert stage.phase("agg/worker-1") == "ready"


def test_what_hangs_is_named_and_leaves_the_table_until_it_is_well(stage, worker):
    stage.beat(worker, engine_age_s=16.0, suspect="VLLM::Worker (pid 8) is stopped", stopped=True)
    assert not worker.routable
    assert "VLLM::Worker (pid 8) is stopped" in worker.state.reason.sentence
    stage.beat(worker, engine_age_s=0.0)
    assert worker.routable
    stage.beat(worker, loop_age_s=31.0, loop_at="spin (x.py:1)")
    assert stage.phase("agg/worker-0") == "stopping"
    assert "spin (x.py:1)" in worker.state.fault.reason.sentence


def test_of_ranks_that_wait_for_each_other_the_stopped_one_is_named(stage):
    stage.up(AGG.replace("replicas = 2", "data-parallel = 2"))
    unit = stage.unit("agg/worker-0")
    for member in (0, 1):
        stage.born(unit, member)
        stage.hello(unit, ready=True, member=member)
    stage.beat(
        unit, member=0, engine_age_s=9.0, suspect="VLLM::Worker_DP0 is stopped", stopped=True
    )
    stage.beat(unit, member=1, engine_age_s=121.0, suspect="VLLM::Worker_DP1 sleeps")
    assert stage.phase("agg/worker-0") == "stopping"
    sentence = unit.state.fault.reason.sentence
    assert "the engine hasn't answered for 9 s: VLLM::Worker_DP0 is stopped" in sentence


def test_a_loading_worker_may_block_its_loop(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.hello(unit)
    stage.beat(unit, ready=False, loop_age_s=300.0)
    stage.say(unit, m.Ready(stage.life(unit), ["m"]))
    assert unit.routable


def test_a_daemon_that_was_stopped_itself_judges_nobody(stage, worker):
    stage.jump(3600)
    keep_beating(stage, 3)
    assert set(stage.phases().values()) == {"ready"}
    assert all(unit.routable for unit in stage.supervisor.units.values())


def test_an_adopted_worker_that_never_beats_again_is_missed(stage, worker):
    for unit in stage.supervisor.units.values():
        unit.heard.clear()
    stage.call(stage.hearing.watch_adopted)
    keep_beating(stage, 7, "agg/worker-0")
    assert not worker.routable


def test_without_workers_that_beat_there_is_no_timer(stage):
    stage.serve(CHAIN)
    stage.call(stage.hearing.watch_adopted)
    assert stage.timers() == 0


def test_the_timer_ends_with_the_last_lease(stage, worker):
    assert stage.timers() == 1
    found = stage.deployments.by_name["agg"]
    stage.call(stage.deployments.begin_down, found, at_once=True)
    for unit in list(stage.supervisor.units.values()):
        stage.empty(unit)
    stage.after(2.0)
    assert stage.timers() == 0


STALL = AGG.replace("replicas = 2", 'replicas = 1\nstart = { stall-event = "60s" }')


def test_a_start_without_a_sign_of_life_is_reported_once_and_goes_on(stage):
    stage.up(STALL)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.say(unit, m.Progress(stage.life(unit), "loading weights", 40.0))
    stage.after(55)
    stage.say(unit, m.Progress(stage.life(unit), "loading weights", 41.0))
    stage.after(55)
    Path(unit.spec.logs[0]).parent.mkdir(parents=True)
    Path(unit.spec.logs[0]).write_text("a line")
    stage.after(55)
    assert ("agg/worker-0.0#1", "start-stalled") not in stage.told()
    stage.after(120)
    assert stage.told().count(("agg/worker-0.0#1", "start-stalled")) == 1
    shown = snapshot.worker(unit, 0).progress
    assert re.fullmatch(r"loading weights; nothing new for 1\d\d s", shown)
    assert stage.phase("agg/worker-0") == "starting"
    stage.say(unit, m.Progress(stage.life(unit), "compiling"))
    stage.after(6)
    assert snapshot.worker(unit, 0).progress == "compiling"


def test_nothing_looks_for_stalls_when_nothing_starts(stage):
    stage.serve(AGG)
    assert stage.timers() == 1, "the leases' own"
