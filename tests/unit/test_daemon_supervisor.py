"""The loop: what is written, published and done, in which order, and at which time."""

import gc
import tracemalloc

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core import fleet
from orchestrator.daemon import supervisor as module
from tests.unit.daemon_stage import AGG, CHAIN


def test_a_step_is_saved_before_it_is_published_and_published_before_it_is_done(stage):
    stage.serve(AGG)
    worker = stage.unit("agg/worker-0")
    stage.forget()
    stage.post(worker, e.MainExited, 9)
    assert [one[0] for one in stage.log] == ["save", "routes", "event", "do"]
    assert stage.log[0][1:] == ("agg/worker-0", "stopping")
    assert isinstance(stage.log[-1][2], a.Kill)
    table = stage.tables[0]
    assert [route.life for route in table.routes] == ["agg/worker-1.0#1"]
    assert [blocked.replica for blocked in table.blocked] == ["agg/worker-0"]


def test_events_are_taken_in_the_order_in_which_they_were_posted(stage):
    stage.up(AGG)
    frontend = stage.unit("agg/frontend-0")

    def both():
        stage.supervisor.post(frontend.id, e.Spawned(0, 1, 5))
        stage.supervisor.post(frontend.id, e.BecameReady(0, 1))

    stage.forget()
    stage.call(both)
    assert [one[2] for one in stage.log if one[0] == "event"] == ["spawned", "phase-changed"]
    assert stage.phase("agg/frontend-0") == "ready"


def test_what_changes_nothing_leaves_no_trace(stage):
    stage.serve(AGG)
    stage.forget()
    stage.post(stage.unit("agg/worker-0"), e.Drained)
    stage.call(stage.supervisor.post, stage.unit("agg/worker-0").id, e.BecameReady(0, 99))
    assert stage.log == []


def test_a_flood_is_taken_in_portions_so_that_sockets_get_their_turn(stage, monkeypatch):
    monkeypatch.setattr(module, "TURN_MAX", 2)
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    between = []

    def flood():
        for number in range(5):
            stage.supervisor.post(unit.id, e.SaidBye(0, 1, "crash", str(number)))
        for _ in range(3):
            stage.loop.call_soon(lambda: between.append(unit.state.members[0].bye_text))

    stage.call(flood)
    assert between[0] == "1"
    assert unit.state.members[0].bye_text == "4"


def test_each_request_of_a_burst_has_an_intent_of_its_own(stage):
    stage.serve(AGG)
    unit = stage.unit("agg/worker-0")
    before = unit.state.intent

    def burst():
        stage.supervisor.request(unit, e.StopRequested)
        stage.supervisor.request(unit, e.StartRequested)
        stage.supervisor.request(unit, e.StopRequested)

    stage.call(burst)
    assert unit.state.intent == before + 3
    assert unit.state.want.value == "down"


def test_a_deadline_comes_at_its_time_and_is_forgotten_with_its_phase(stage):
    stage.up(CHAIN)
    unit = stage.unit("chain/a-0")
    limit_s = unit.spec.policy.start.timeout_s
    stage.jump(limit_s - 0.2)
    assert stage.phase("chain/a-0") == "starting"
    stage.born(unit)
    assert stage.phase("chain/a-0") == "ready"
    stage.forget()
    stage.jump(1.0)
    assert stage.log == []


def test_a_start_that_takes_too_long_is_ended(stage):
    stage.up(AGG)
    unit = stage.unit("agg/worker-0")
    stage.born(unit)
    stage.jump(unit.spec.policy.start.timeout_s + 0.1)
    assert stage.phase("agg/worker-0") == "stopping"
    assert unit.state.fault.reason.cause.value == "start-timeout"


def test_a_removed_unit_has_no_deadline_and_hears_nothing(stage):
    stage.up(CHAIN)
    unit = stage.unit("chain/c-0")
    stage.call(stage.supervisor.request, unit, e.StopRequested)
    stage.call(stage.supervisor.remove, unit.id)
    stage.forget()
    stage.call(stage.supervisor.post, unit.id, e.StartRequested(99))
    stage.jump(60)
    assert not [one for one in stage.log if one[1] == "chain/c-0"]


def test_dependants_are_told_in_the_same_pass(stage):
    stage.up(CHAIN)
    assert stage.ordered() == ["chain/a-0"]
    stage.forget()
    stage.born(stage.unit("chain/a-0"))
    assert stage.ordered() == ["chain/b-0"]
    stage.born(stage.unit("chain/b-0"))
    assert stage.ordered() == ["chain/b-0", "chain/c-0"]


def test_news_that_is_no_longer_true_starts_nobody(stage):
    stage.up(CHAIN)
    unit = stage.unit("chain/a-0")

    def born_and_dead():
        stage.supervisor.post(unit.id, e.SpawnFailed(0, 1, "", "no"))
        stage.supervisor.post(unit.id, e.Spawned(0, 1, 5))

    stage.call(born_and_dead)
    assert stage.phase("chain/b-0") == "waiting"
    assert "chain/a-0" in stage.unit("chain/b-0").state.reason.sentence


def test_hundreds_that_wait_for_one_start_without_recursion(stage):
    text = 'name = "many"\n[processes.one]\ncommand = ["x"]\n'
    for number in range(520):
        text += f'[processes.p{number}]\ncommand = ["x"]\ndepends-on = ["one"]\n'
    stage.up(text)
    stage.forget()
    stage.born(stage.unit("many/one-0"))
    spawned = set()
    while len(spawned) < 520:
        births = set(stage.ordered()) - spawned
        assert 0 < len(births) <= module.BIRTHS_MAX
        spawned |= births
        for name in births:
            stage.born(stage.unit(name))


def test_catching_up_starts_nobody_on_what_only_used_to_be_true(stage):
    stage.up(CHAIN)
    first, second = stage.unit("chain/a-0"), stage.unit("chain/b-0")
    waiting = second.state
    stage.born(first)
    second.state = waiting  # the old daemon died before it told
    stage.forget()

    def adopt():
        stage.supervisor.post(second.id, e.DaemonRestarted())
        stage.supervisor.post(first.id, e.TreeEmptied(0, 1, e.ExitFacts(status=256)))
        stage.supervisor.catch_up()

    stage.call(adopt)
    assert stage.phase("chain/b-0") == "waiting"
    assert "chain/b-0" not in stage.ordered()


def test_no_more_births_at_once_than_may_be(stage, monkeypatch):
    monkeypatch.setattr(module, "BIRTHS_MAX", 1)
    stage.up(AGG)
    units = list(stage.supervisor.units.values())
    assert len(units) > 2
    for left in range(len(units) - 1, -1, -1):
        being_born = [unit for unit in units if fleet.is_being_born(unit.state)]
        waiting = [unit for unit in units if unit.state.phase.value == "waiting"]
        assert (len(being_born), len(waiting)) == (1, left)
        stage.born(being_born[0])


def test_statement_59_a_restart_leaves_nothing_behind_in_the_daemons_memory(stage):
    """Under 100 bytes each: less than a megabyte in 10,000 restarts."""
    stage.serve(AGG)
    worker = stage.unit("agg/worker-0")

    def restart(times):
        for _ in range(times):
            stage.call(stage.supervisor.request, worker, e.StartRequested)
            stage.post(worker, e.MainExited, 9)
            stage.empty(worker, 9)
            stage.after(1.5)
            stage.make_ready(worker)
            stage.forget()
            stage.sent.clear()
            stage.tables.clear()

    restart(30)
    gc.collect()
    tracemalloc.start()
    restart(30)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    restart(100)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert worker.state.incarnation > 160
    assert grown < 100 * 100
