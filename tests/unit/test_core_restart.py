"""Backoff, budgets and classes; numbers from the restart policy's acceptance statements."""

import pytest

from orchestrator.core import events as e
from orchestrator.core import restart
from orchestrator.core.policy import Backoff, Policy, Restart
from orchestrator.core.reasons import Cause
from orchestrator.core.state import Phase
from tests.unit.core_driver import SILENT, Driver

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def pauses(driver: Driver, times: int, *, ready_for_s: float) -> list[float]:
    found = []
    for _ in range(times):
        driver.ready().end(1, after_s=ready_for_s)
        gone_at = driver.now
        driver.deadline()
        found.append(driver.now - gone_at)
    return found


def test_statement_21_delays_double_to_a_minute_measured_from_the_empty_tree():
    patient = Policy(intensity=Policy().intensity.__class__(failures_max=100))
    found = pauses(Driver(patient).start(), 8, ready_for_s=1.0)
    for pause, nominal in zip(found, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert nominal * 0.9 <= pause <= nominal * 1.1
    assert found != [1, 2, 4, 8, 16, 32, 60, 60], "no jitter"


def test_statement_21_the_delay_runs_from_the_empty_tree_not_from_the_exit():
    driver = Driver().start().ready()
    driver.member(e.MainExited, 0, 256, after_s=5.0).feed(e.DaemonRestarted(), after_s=3.0)
    driver.empty()
    assert driver.state.not_before - driver.now >= 0.9


def test_jitter_is_a_function_of_name_and_incarnation_alone():
    once = [restart.backoff_s(5, Backoff(), f"agg/worker-{i}#3") for i in range(200)]
    assert once == [restart.backoff_s(5, Backoff(), f"agg/worker-{i}#3") for i in range(200)]
    assert min(once) < 14.8
    assert max(once) > 17.2
    assert all(14.4 <= pause <= 17.6 for pause in once)


def test_statement_22_first_crash_after_ten_ready_minutes_restarts_without_delay():
    driver = Driver().start()
    pauses(driver, 3, ready_for_s=1.0)
    assert driver.state.counters.row == 3
    driver.ready().end(1, after_s=600.0)
    assert driver.phase is Phase.STARTING
    assert driver.state.counters.row == 1
    assert pauses(driver, 1, ready_for_s=1.0)[0] >= 1.8


def test_statement_23_an_unasked_exit_with_0_after_ready_is_a_crash():
    driver = Driver().start().ready().end(0, after_s=10.0)
    assert driver.phase is Phase.WAITING
    assert driver.state.last_failure.cause is Cause.CRASH
    assert driver.deadline().phase is Phase.STARTING
    assert driver.state.restarts == 1


@pytest.mark.parametrize("code", [2, 64, 78, 126, 127])
def test_statement_24_a_wrong_command_line_is_tried_exactly_once(code):
    driver = Driver().start().born().end(code, tail="error: unrecognized arguments: --nope\n")
    assert driver.phase is Phase.FAILED
    assert driver.cause is Cause.CONFIG
    assert "--nope" in driver.state.reason.sentence
    assert len(driver.spawned_at) == 1


def test_statement_25_out_of_memory_while_loading_is_tried_exactly_twice():
    driver = Driver().start().born().end(1, tail=OOM)
    assert driver.state.not_before - driver.now == 10.0
    driver.deadline().born().end(1, tail=OOM)
    assert driver.phase is Phase.FAILED
    assert driver.cause is Cause.OOM_LOAD
    assert driver.state.reason.evidence == OOM
    assert len(driver.spawned_at) == 2


def test_statement_26_the_same_words_after_ready_are_a_crash():
    driver = Driver().start().ready().end(1, tail=OOM, after_s=9.0)
    assert driver.state.last_failure.cause is Cause.CRASH
    assert driver.state.counters.tallies == {}
    assert driver.state.counters.weight == 1.0, "the run budget"


def test_s28_a_slow_start_is_left_alone_and_a_silent_one_tried_twice():
    assert Driver().start().ready(after_s=1200.0).phase is Phase.READY
    driver = Driver().start().born().deadline()
    assert (driver.phase, driver.now) == (Phase.STOPPING, 1800.0)
    driver.empty(status=9).deadline().born().deadline().empty(status=9)
    assert driver.phase is Phase.FAILED
    assert driver.cause is Cause.START_TIMEOUT
    assert len(driver.spawned_at) == 2


def test_statement_30_six_quick_crashes_end_it():
    driver = Driver().start()
    pauses(driver, 5, ready_for_s=60.0)
    assert driver.phase is Phase.STARTING
    driver.ready().end(1, after_s=60.0)
    assert driver.phase is Phase.FAILED
    assert driver.cause is Cause.CRASH_LOOP
    assert len(driver.spawned_at) == 6


def test_statement_30_one_crash_each_ten_minutes_never_does():
    driver = Driver().start()
    while driver.now < 24 * 3600:
        driver.ready().end(1, after_s=600.0)
        if driver.phase is Phase.WAITING:
            driver.deadline()
        assert driver.phase is Phase.STARTING
    assert len(driver.spawned_at) > 140


def test_statement_32_counters_and_the_rest_of_the_delay_survive_the_daemon():
    driver = Driver().start()
    pauses(driver, 3, ready_for_s=1.0)
    driver.ready().end(1, after_s=1.0)
    before = driver.state
    driver.reload().feed(e.DaemonRestarted(), after_s=2.0)
    assert driver.state == before
    assert [action.at for action in driver.actions] == [before.not_before]


def test_statement_32_the_tries_of_each_class_survive_the_daemon():
    driver = Driver().start().born().end(1, tail=OOM)
    assert driver.state.counters.tallies
    driver.reload().feed(e.DaemonRestarted()).deadline().born().end(1, tail=OOM)
    assert (driver.phase, driver.cause) == (Phase.FAILED, Cause.OOM_LOAD)
    assert len(driver.spawned_at) == 2


def test_s33_only_a_start_by_hand_leaves_failed_and_forgives():
    driver = Driver().start().born().end(2)
    driver.feed(e.DaemonRestarted())
    assert driver.phase is Phase.FAILED
    driver.start()
    assert driver.phase is Phase.STARTING
    assert driver.state.counters.row == 0


def test_three_attempts_at_a_start_that_crashes():
    driver = Driver().start().born().end(1)
    driver.deadline().born().end(1)
    driver.deadline().born().end(1, tail="ValueError: no\n")
    assert driver.phase is Phase.FAILED
    assert driver.cause is Cause.START_CRASH
    assert len(driver.spawned_at) == 3
    assert "3 failed starts" in driver.state.reason.sentence


def test_a_start_that_worked_forgives_the_failed_ones():
    driver = Driver().start().born().end(1)
    driver.deadline().born().end(1)
    driver.deadline().ready().end(1, after_s=1.0)
    driver.deadline().born().end(1)
    assert driver.phase is Phase.WAITING


def test_s36_a_command_that_is_not_there_is_not_retried():
    driver = Driver(Policy(has_readiness=False)).start().born()
    driver.member(e.MainExited, 0, 127 << 8)
    driver.empty(status=127 << 8, exec_error="ENOENT", command="/bin/nope")
    assert driver.phase is Phase.FAILED
    assert driver.state.reason.sentence == "command not found: /bin/nope"
    assert len(driver.spawned_at) == 1


def test_a_taken_port_is_tried_four_times():
    driver = Driver().start()
    for _ in range(3):
        driver.born().end(1, tail="OSError: [Errno 98] Address already in use").deadline()
    driver.born().end(1, tail="OSError: [Errno 98] Address already in use")
    assert driver.cause is Cause.PORT_IN_USE
    assert len(driver.spawned_at) == 4


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [
        (Restart.ON_FAILURE, 0, Phase.COMPLETED),
        (Restart.ON_FAILURE, 1, Phase.WAITING),
        (Restart.NEVER, 0, Phase.COMPLETED),
        (Restart.NEVER, 1, Phase.FAILED),
        (Restart.ALWAYS, 0, Phase.WAITING),
    ],
)
def test_restart_policies(policy, code, phase):
    driver = Driver(Policy(restart=policy)).start().ready().end(code, after_s=1.0)
    assert driver.phase is phase


def test_a_oneshot_completes_and_lets_its_tree_linger():
    driver = Driver(Policy(oneshot=True, has_readiness=False)).start().born()
    driver.member(e.MainExited, 0, 0)
    assert driver.phase is Phase.STOPPING
    driver.empty()
    assert driver.phase is Phase.COMPLETED
    assert driver.state.last_failure is None


def test_silence_is_charged_like_a_crash():
    driver = Driver().start().ready().member(e.LeaseExpired, 0, SILENT, after_s=40.0)
    driver.empty(status=9)
    assert driver.state.last_failure == SILENT
    assert driver.state.counters.weight == 1.0
