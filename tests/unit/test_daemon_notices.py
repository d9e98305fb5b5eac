"""READY, STATUS, STOPPING, WATCHDOG, EXTEND: facts that become events once, and only if new."""

import pytest

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.host.records import Said

TEXT = """
name = "t"
start = { timeout = "100s", timeout-max = "250s", stop-grace = "1s" }
stop = { grace = "50s", grace-max = "250s", linger = "0s" }
[processes.p]
command = ["p"]
ready = { notify = true }
watchdog = "30s"
"""
P = "t/p-0"


@pytest.fixture
def unit(stage):
    stage.up(TEXT)
    unit = stage.unit(P)
    stage.born(unit)
    return unit


def say(stage, unit, incarnation: int | None = None, **facts) -> None:
    life = unit.id.life(0, incarnation or unit.state.incarnation)
    stage.call(stage.notices.take, unit, life, Said(**facts))


def test_it_is_ready_when_it_says_so_and_its_status_is_shown(stage, unit):
    say(stage, unit)
    assert unit.heard[0].progress == "waits for its READY=1"
    say(stage, unit, status="loading, 40 %")
    assert (stage.phase(P), unit.heard[0].progress) == ("starting", "loading, 40 %")
    say(stage, unit, refused=77)
    assert "pid 77, not from the main process" in unit.heard[0].progress
    say(stage, unit, ready=True)
    assert stage.phase(P) == "ready"


def test_what_an_earlier_life_said_counts_for_nothing(stage, unit):
    stage.post(unit, e.MainExited, 1 << 8)
    stage.empty(unit, 1 << 8)
    stage.after(2)
    stage.born(unit)
    say(stage, unit, 1, ready=True)
    assert stage.phase(P) == "starting"


def test_an_extension_moves_the_end_of_the_start(stage, unit):
    begun = stage.loop.time()
    stage.jump(90)
    say(stage, unit, extended_until=begun + 150)
    assert unit.state.deadline.at == begun + 150
    say(stage, unit, extended_until=begun + 150, status="still")
    say(stage, unit, extended_until=begun + 10_000)
    assert unit.state.deadline.at == begun + 250
    stage.jump(155)
    stage.jump(6)
    assert stage.phase(P) == "stopping"
    assert unit.state.reason.cause.value == "start-timeout"


def test_an_extension_moves_the_end_of_a_stop_too(stage, unit):
    say(stage, unit, ready=True, extended_until=stage.loop.time() + 90)
    stage.call(stage.supervisor.request, unit, e.StopRequested)
    begun = stage.loop.time()
    assert unit.state.deadline.at == begun + 50, "that was about the start"
    stage.jump(40)
    say(stage, unit, ready=True, extended_until=begun + 150)
    assert unit.state.deadline.at == begun + 150
    say(stage, unit, ready=True, extended_until=begun + 10_000)
    assert unit.state.deadline.at == begun + 250
    stage.jump(211)
    assert stage.ordered(a.Kill) == [P]


def test_stopping_takes_it_out_and_ready_brings_it_back(stage, unit):
    say(stage, unit, ready=True)
    say(stage, unit, ready=True, stopping=True)
    assert (unit.routable, unit.state.reason.sentence) == (False, "says that it is stopping")
    say(stage, unit, ready=True)
    assert unit.routable


def test_a_watchdog_is_put_off_by_each_sign_and_ends_in_a_restart(stage, unit):
    assert not stage.notices._dogs  # nobody watches over one that isn't ready
    say(stage, unit, ready=True)
    for second in range(5):
        stage.after(29)
        say(stage, unit, ready=True, alive_at=second + 1.0)
    assert stage.timers() == 1
    assert stage.phase(P) == "ready"
    stage.after(30.2)
    assert stage.ordered(a.Kill) == [P]
    assert unit.state.reason.sentence == "didn't say WATCHDOG=1 for 30 s"
    assert not stage.notices._dogs


def test_a_daemon_that_slept_gives_it_the_whole_time_again(stage, unit):
    say(stage, unit, ready=True)
    stage.jump(1000)
    assert stage.phase(P) == "ready"
    stage.after(30.2)
    assert stage.phase(P) == "stopping"


def test_a_trigger_restarts_at_once(stage, unit):
    say(stage, unit, ready=True)
    say(stage, unit, ready=True, triggered=True)
    assert stage.ordered(a.Kill) == [P]
    assert "wants to be restarted" in str(unit.state.reason)


def test_a_stop_sends_the_watchdog_home(stage, unit):
    say(stage, unit, ready=True)
    stage.call(stage.supervisor.request, unit, e.StopRequested)
    assert stage.notices._dogs == {}
