"""Topologies on their way up and down: levels, haste, tables, and what the next daemon finds."""

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.daemon import deployments as module
from tests.unit.daemon_stage import AGG, CHAIN

TWO = AGG + '[processes.side]\ncommand = ["side"]\n'


def end_all(stage, kind=a.Stop):
    """Let go what was told to."""
    for name in dict.fromkeys(stage.ordered(kind)):
        stage.empty(stage.unit(name))


def test_up_writes_the_topology_down_and_asks_everything_to_start(stage):
    found = stage.up(AGG)
    assert stage.run_dir.topology("agg").exists()
    assert stage.run_dir.topology("agg").stat().st_mode & 0o777 == 0o600
    assert sorted(stage.ordered()) == ["agg/frontend-0", "agg/worker-0", "agg/worker-1"]
    assert stage.deployments.kept() == {stage.run_dir.topology("agg"): found.kept}


def test_down_goes_level_by_level_dependants_first(stage):
    found = stage.serve(CHAIN)
    assert set(stage.phases().values()) == {"ready"}
    stage.forget()
    stage.call(stage.deployments.begin_down, found, at_once=False)
    for name in ("chain/c-0", "chain/b-0", "chain/a-0"):
        assert stage.ordered(a.Stop) == [name]
        unit = stage.unit(name)
        stage.forget()
        stage.empty(unit)
    assert stage.gone == 1
    assert stage.supervisor.units == {}
    assert not stage.run_dir.topology("chain").exists()
    assert list(stage.run_dir.replicas.iterdir()) == []


def test_the_frontend_drains_before_the_engines_do(stage):
    found = stage.serve(AGG)
    stage.forget()
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert stage.ordered(a.Drain) == ["agg/frontend-0"]
    stage.post(stage.unit("agg/frontend-0"), e.Drained)
    assert stage.ordered(a.Stop) == ["agg/frontend-0"]
    stage.empty(stage.unit("agg/frontend-0"))
    assert sorted(stage.ordered(a.Drain)) == ["agg/frontend-0", "agg/worker-0", "agg/worker-1"]


def test_down_at_once_kills_all_levels(stage):
    found = stage.serve(CHAIN)
    stage.forget()
    stage.call(stage.deployments.begin_down, found, at_once=True)
    assert sorted(stage.ordered(a.Kill)) == ["chain/a-0", "chain/b-0", "chain/c-0"]
    end_all(stage, a.Kill)
    assert stage.gone == 1


def test_a_second_down_hastens_the_first(stage):
    found = stage.serve(CHAIN)
    stage.call(stage.deployments.begin_down, found, at_once=False)
    stage.forget()
    stage.call(stage.deployments.begin_down, found, at_once=True)
    assert sorted(stage.ordered(a.Kill)) == ["chain/a-0", "chain/b-0", "chain/c-0"]
    assert ("chain", "going-down") not in stage.told()


def test_however_often_down_is_said_each_is_asked_once(stage):
    found = stage.serve(CHAIN)
    unit = stage.unit("chain/c-0")
    before = unit.state.intent

    def twice():
        stage.deployments.begin_down(found, at_once=False)
        stage.deployments.begin_down(found, at_once=False)

    stage.call(twice)
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert unit.state.intent == before + 1


def test_the_end_of_the_last_is_told_before_the_end_of_all(stage):
    found = stage.serve(CHAIN)
    stage.call(stage.deployments.begin_down, found, at_once=True)
    stage.forget()
    end = [stage.unit(name) for name in ("chain/a-0", "chain/b-0", "chain/c-0")]
    for unit in end:
        stage.empty(unit)
    assert stage.told()[-2:] == [("chain/c-0", "phase-changed"), ("chain", "gone")]


def test_what_failed_or_is_complete_does_not_hold_up_the_end(stage):
    text = 'name = "t"\n[processes.once]\ncommand = ["x"]\noneshot = true\n'
    text += '[processes.bad]\ncommand = ["y"]\n[processes.bad.restart]\npolicy = "never"\n'
    found = stage.up(text)
    for name, status in (("t/once-0", 0), ("t/bad-0", 256)):
        stage.born(stage.unit(name))
        stage.post(stage.unit(name), e.MainExited, status)
        stage.empty(stage.unit(name), status)
    assert stage.phases() == {"t/once-0": "completed", "t/bad-0": "failed"}
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert stage.gone == 1


def test_what_never_started_goes_down_without_having_lived(stage):
    found = stage.up(CHAIN)
    stage.forget()
    stage.call(stage.deployments.begin_down, found, at_once=False)
    stage.post(stage.unit("chain/a-0"), e.Spawned, 7)
    end_all(stage)
    end_all(stage, a.Kill)
    assert stage.gone == 1
    assert stage.ordered() == []


def test_the_wish_to_go_down_outlives_the_daemon(stage):
    found = stage.serve(CHAIN)
    stage.call(stage.deployments.begin_down, found, at_once=False)
    assert [kept.going_down for kept in stage.deployments.kept().values()] == [True]


def test_a_file_that_cannot_be_read_is_named_and_stops_nothing(stage):
    stage.up(CHAIN)
    for name, data in (("half", b'{"file": "x"'), ("other", b'{"v": 2}'), ("odd", b'"\xff"')):
        stage.run_dir.topology(name).write_bytes(data)
    kept = {path.stem: one for path, one in stage.deployments.kept().items()}
    assert [name for name, one in kept.items() if one is None] == ["half", "odd", "other"]
    assert kept["chain"] is not None


def test_a_draft_that_was_left_is_no_topology(stage):
    stage.run_dir.topology("t").with_suffix(".new").write_bytes(b"{")
    assert stage.deployments.kept() == {}


def test_a_change_that_the_table_does_not_show_publishes_none(stage):
    stage.serve(TWO)
    side, frontend = stage.unit("agg/side-0"), stage.unit("agg/frontend-0")
    stage.forget()
    stage.post(side, e.MainExited, 9)
    stage.post(frontend, e.MainExited, 9)
    assert stage.tables == []
    stage.post(stage.unit("agg/worker-0"), e.LeaseMissed)
    assert len(stage.tables) == 1


def test_a_frontend_that_greets_gets_the_table(stage):
    stage.serve(AGG)
    stage.forget()
    stage.hello(stage.unit("agg/frontend-0"), ready=True)
    assert len(stage.tables) == 1


def test_versions_only_grow(stage):
    found = stage.serve(AGG)
    seen = [found.routes_version]
    for _ in range(5):
        stage.call(stage.deployments.publish, found)
        seen.append(found.routes_version)
    assert seen == sorted(set(seen))


def test_answering_is_told_when_the_frontend_obeys_the_present_table(stage):
    found = stage.serve(AGG)
    frontend = stage.unit("agg/frontend-0")
    stage.call(stage.deployments.publish, found)
    stage.forget()
    stage.beat(stage.unit("agg/worker-0"))
    stage.beat(frontend, routes_version=found.routes_version - 1)
    assert stage.told() == []
    stage.beat(frontend, routes_version=found.routes_version)
    stage.beat(frontend, routes_version=found.routes_version)
    assert stage.told() == [("agg", "answering")]


@pytest.fixture
def adopted(stage):
    """A topology whose workers serve and haven't greeted this daemon yet."""
    found = stage.serve(AGG)
    for unit in stage.deployments.units("agg"):
        unit.heard.clear()
    stage.forget()
    stage.call(stage.deployments.publish_when_heard, found)
    return found


def test_an_adopted_table_waits_for_all_who_serve(stage, adopted):
    stage.hello(stage.unit("agg/frontend-0"), ready=True)
    stage.hello(stage.unit("agg/worker-0"), ready=True)
    assert stage.tables == []
    stage.hello(stage.unit("agg/worker-1"), ready=True)
    assert [len(table.routes) for table in stage.tables] == [2]
    assert not adopted.holding


def test_whoever_changes_what_an_adopted_table_says_waits_for_the_new_one(stage, adopted):
    """The frontends obey the old one, so nobody may be told that the change has reached them."""
    obeyed = adopted.routes_version
    stage.call(stage.deployments.publish, adopted)
    assert adopted.routes_version == obeyed
    stage.call(stage.deployments.publish, adopted, changed=True)
    assert stage.tables == []
    assert adopted.routes_version > obeyed
    for name in ("agg/worker-0", "agg/worker-1"):
        stage.hello(stage.unit(name), ready=True)
    assert [table.version for table in stage.tables] == [adopted.routes_version]


def test_an_adopted_table_does_not_wait_for_the_dead(stage, adopted):
    stage.hello(stage.unit("agg/worker-0"), ready=True)
    stage.post(stage.unit("agg/worker-1"), e.MainExited, 9)
    assert [len(table.routes) for table in stage.tables] == [1]


def test_an_adopted_table_waits_for_nobody_for_ever(stage, adopted):
    stage.jump(module.HOLD_S + 0.1)
    assert [len(table.routes) for table in stage.tables] == [0]


def test_a_table_that_is_held_dies_with_its_topology(stage, adopted):
    stage.call(stage.deployments.begin_down, adopted, at_once=True)
    end_all(stage, a.Kill)
    assert stage.gone == 1
    stage.forget()
    stage.jump(module.HOLD_S + 0.1)
    assert stage.tables == []
