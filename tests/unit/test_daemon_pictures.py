"""The routing table and the snapshot: what is read out of units, and what is left unsaid."""

import pytest
from msgspec import structs

from orchestrator.core import events as e
from orchestrator.core.actions import Kill
from orchestrator.core.state import Phase, State
from orchestrator.daemon import routing, snapshot
from orchestrator.wire import messages
from tests.unit.daemon_stage import AGG, CHAIN


def replica(stage, name):
    return snapshot.replica(stage.unit(name), stage.loop.now_s)


def topology(stage, name="agg"):
    found = stage.deployments.by_name[name]
    return snapshot.topology(found, stage.deployments.units(name), stage.loop.now_s)


def crash(stage, name, status=256):
    unit = stage.unit(name)
    stage.post(unit, e.MainExited, status)
    stage.empty(unit, status)
    return unit


# ---- routing -------------------------------------------------------------------------------------


def test_statement_41_all_of_a_gang_are_routes_or_none_is(stage):
    text = AGG.replace("replicas = 2", "data-parallel = 3")
    stage.up(text)
    gang = stage.unit("agg/worker-0")
    for member in range(3):
        stage.born(gang, member)
        stage.hello(gang, member=member)
    routes = lambda: [route.life for route in stage.tables[-1].routes]  # noqa: E731
    for member in (2, 0):
        stage.say(gang, messages.Ready(stage.life(gang, member=member), ["m"]), member=member)
        assert routes() == []
    stage.say(gang, messages.Ready(stage.life(gang, member=1), ["m"]), member=1)
    assert routes() == [f"agg/worker-0.{member}#1" for member in range(3)]
    stage.forget()
    stage.post(gang, e.LeaseMissed, member=1)
    assert routes() == []
    assert "member 1" in stage.tables[-1].blocked[0].reason
    assert (stage.phase("agg/worker-0"), stage.ordered(Kill)) == ("ready", [])
    stage.post(gang, e.LeaseRecovered, member=1)
    assert len(routes()) == 3


def test_a_table_has_the_routable_and_the_blocked_with_their_reason(stage):
    stage.serve(AGG)
    crash(stage, "agg/worker-0")
    table = stage.tables[-1]
    assert [(route.life, route.kind, route.models) for route in table.routes] == [
        ("agg/worker-1.0#1", "aggregated", ["m"])
    ]
    (blocked,) = table.blocked
    assert (blocked.replica, blocked.phase, blocked.models) == ("agg/worker-0", "waiting", ["m"])
    assert "exit" in blocked.reason
    assert table.engine == "sim"


def test_who_asks_again_is_told_to_come_after_the_pause(stage):
    stage.serve(AGG)
    for _ in range(6):
        unit = crash(stage, "agg/worker-0")
        wait_s = unit.state.not_before - stage.loop.now_s
        told = routing.blocked(unit, stage.loop.now_s).retry_after_s
        assert told == pytest.approx(max(1.0, wait_s))
        if unit.state.phase is Phase.FAILED:
            break
        stage.jump(max(wait_s, 0) + 0.1)
        stage.make_ready(unit)
    assert told == 1.0


def test_a_ready_worker_that_has_not_said_where_it_is_is_blocked(stage):
    stage.serve(AGG)
    stage.unit("agg/worker-0").heard.clear()
    units = stage.deployments.units("agg")
    table = routing.table("agg", "sim", units, 1, stage.loop.now_s)
    assert [blocked.replica for blocked in table.blocked] == ["agg/worker-0"]
    assert not routing.is_complete(units)


def test_the_words_of_a_dead_life_are_no_route(stage):
    stage.serve(AGG)
    unit = stage.unit("agg/worker-0")
    unit.state = structs.replace(unit.state, incarnation=2)
    assert routing.routes_of(unit) == []


@pytest.mark.parametrize(
    ("name", "change", "concerned"),
    [
        ("agg/worker-0", {"phase": Phase.STOPPING}, True),
        ("agg/worker-0", {"incarnation": 9}, True),
        ("agg/worker-0", {"members": ()}, True),
        ("agg/worker-0", {"serial": 99, "intent": 9}, False),
        ("agg/frontend-0", {"phase": Phase.STOPPING}, False),
    ],
)
def test_a_table_is_made_anew_for_what_it_shows(stage, name, change, concerned):
    stage.serve(AGG)
    unit = stage.unit(name)
    if "members" in change:
        overdue = structs.replace(unit.state.members[0], overdue=True)
        change = {"members": (overdue,)}
    before, unit.state = unit.state, structs.replace(unit.state, **change)
    assert routing.concerns(unit, before) is concerned


# ---- the snapshot --------------------------------------------------------------------------------


def test_when_all_is_well_there_is_nothing_to_explain(stage):
    stage.serve(AGG)
    one = replica(stage, "agg/worker-0")
    assert (one.phase, one.cause, one.reason, one.advice) == ("ready", "", "", "")
    assert one.routable
    assert one.deadline is None
    whole = topology(stage)
    assert (whole.health, whole.reason, whole.models) == ("ready", "", ["m"])
    assert whole.endpoint == "http://127.0.0.1:8000"
    assert [role.name for role in whole.roles] == ["frontend", "worker"]
    assert whole.processes == []


DISAGG = """
name = "dg"
model = "m"
[frontend]
port = 8000
[roles.prefill]
kind = "prefill"
engine = "sim"
[roles.decode]
kind = "decode"
engine = "sim"
[kv-transfer]
connector = "nixl"
"""


@pytest.mark.parametrize(
    ("text", "then"),
    [(DISAGG, "decode reads prompts itself"), (DISAGG + "enforce = true", "requests get 503")],
)
def test_without_a_prefill_worker_it_is_degraded_also_if_nobody_wants_one(stage, text, then):
    found = stage.serve(text)
    assert (topology(stage, "dg").health, topology(stage, "dg").reason) == ("ready", "")
    prefill, frontend = stage.unit("dg/prefill-0"), stage.unit("dg/frontend-0")
    stage.call(stage.supervisor.request, prefill, e.StopRequested)
    stage.empty(prefill, 0)
    stage.beat(frontend, routes_version=found.routes_version)
    whole = topology(stage, "dg")
    assert (whole.health, whole.models) == ("degraded", ["m"])
    assert whole.reason.startswith(f"no prefill worker for m, so {then}: dg/prefill-0 is stop")
    crash(stage, "dg/decode-0")
    assert topology(stage, "dg").reason.startswith("dg/decode-0: restarts after")


def test_what_waits_says_why_and_until_when(stage):
    stage.serve(AGG)
    crash(stage, "agg/worker-0")
    one = replica(stage, "agg/worker-0")
    assert (one.phase, one.want, one.cause) == ("waiting", "up", "backoff")
    assert one.deadline.what == "next start"
    assert 0.5 < one.deadline.in_s < 2
    assert topology(stage).health == "degraded"
    assert topology(stage).reason.startswith("agg/worker-0: restarts after")


def test_what_came_back_says_why_it_was_away_without_advice(stage):
    stage.serve(AGG)
    unit = crash(stage, "agg/worker-0", 9)
    stage.jump(3)
    stage.make_ready(unit)
    one = replica(stage, "agg/worker-0")
    assert (one.phase, one.incarnation, one.restarts, one.advice) == ("ready", 2, 1, "")
    assert one.reason.startswith("restarted: ")
    assert "SIGKILL" in one.reason


def test_a_dependency_is_a_reason_but_its_second_look_no_deadline(stage):
    stage.up(CHAIN)
    one = replica(stage, "chain/b-0")
    assert one.cause == "waiting-dependency"
    assert "chain/a-0" in one.reason
    assert one.deadline is None
    assert [role.name for role in topology(stage, "chain").processes] == ["a", "b", "c"]


def test_a_deadline_that_has_passed_is_now(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    late = unit.state.deadline.at + 50
    assert snapshot.deadline_of(unit.state, late).in_s == 0
    assert snapshot.deadline_of(State(name="x"), late) is None


def test_progress_is_shown_while_it_starts_and_counters_while_it_lives(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    unit.of(unit.life(0)).progress = "loading"
    assert replica(stage, "agg/worker-0").workers[0].progress == "loading"
    stage.hello(unit, ready=True)
    stage.beat(unit, inflight=2, requests=5, tokens=60)
    worker = replica(stage, "agg/worker-0").workers[0]
    assert (worker.progress, worker.inflight, worker.requests, worker.tokens) == ("", 2, 5, 60)
    assert worker.id == "agg/worker-0.0#1"
    crash(stage, "agg/worker-0")
    worker = replica(stage, "agg/worker-0").workers[0]
    assert (worker.pid, worker.inflight, worker.tokens) == (None, 0, 0)


def test_not_ready_before_the_frontend_obeys_the_present_table(stage):
    found = stage.serve(AGG)
    frontend = stage.unit("agg/frontend-0")
    stage.call(stage.deployments.publish, found)
    assert (topology(stage).health, topology(stage).models) == ("starting", [])
    stage.beat(frontend, routes_version=found.routes_version)
    assert (topology(stage).health, topology(stage).models) == ("ready", ["m"])


def test_the_beat_of_a_dead_frontend_answers_nothing(stage):
    stage.serve(AGG)
    frontend = crash(stage, "agg/frontend-0")
    assert topology(stage).models == []
    stage.jump(3)
    stage.born(frontend)
    stage.post(frontend, e.BecameReady)
    assert frontend.routable
    assert (topology(stage).health, topology(stage).models) == ("starting", [])


def test_one_frontend_of_two_is_enough_for_clients(stage):
    stage.serve(AGG.replace("port = 8000", "port = 8000\nreplicas = 2"))
    assert topology(stage).models == ["m"]
    crash(stage, "agg/frontend-1")
    assert topology(stage).models == ["m"]
    assert topology(stage).health == "degraded"


def test_a_frontend_that_was_stopped_by_hand_serves_nothing_and_is_not_waited_for(stage):
    stage.serve(AGG)
    frontend = stage.unit("agg/frontend-0")
    stage.call(stage.supervisor.request, frontend, lambda n: e.StopRequested(n, at_once=True))
    stage.empty(frontend)
    assert (topology(stage).health, topology(stage).models) == ("ready", [])


def test_going_down_is_said_first_of_all(stage):
    found = stage.serve(AGG)
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert topology(stage).health == "stopping"


def test_the_worst_is_named_before_what_merely_waits(stage):
    text = 'name = "t"\n[processes.a]\ncommand = ["a"]\n[processes.b]\ncommand = ["b"]\n'
    stage.up(text + 'depends-on = ["a"]\n[processes.a.restart]\npolicy = "never"\n')
    stage.born(stage.unit("t/a-0"))
    stage.born(stage.unit("t/b-0"))
    crash(stage, "t/b-0")
    crash(stage, "t/a-0")
    assert stage.phases() == {"t/a-0": "failed", "t/b-0": "waiting"}
    assert topology(stage, "t").reason.startswith("t/a-0: ")
    assert topology(stage, "t").health == "failed"
