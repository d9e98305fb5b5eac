"""One sentence for each way to end."""

import pytest

from orchestrator.core import events as e
from orchestrator.core.diagnosis import End, diagnose, exec_failure
from orchestrator.core.events import ExitFacts
from orchestrator.core.log_lines import last_line
from orchestrator.core.reasons import Cause
from tests.unit.core_driver import SILENT, Driver


def reason_of(ready_s=None, *, bye=("", ""), **facts):
    return diagnose(
        End(
            name="agg/worker-0",
            facts=ExitFacts(**facts),
            ready_s=ready_s,
            bye_code=bye[0],
            bye_text=bye[1],
        )
    )


@pytest.mark.parametrize(
    ("ready_s", "facts", "cause", "sentence"),
    [
        (
            2.1,
            {"status": 3 << 8, "tail": "a\nboom\n"},
            Cause.CRASH,
            "exited with code 3, 2.1 s after it became ready; last line: boom",
        ),
        (
            None,
            {"status": 1 << 8, "tail": "ValueError: no such thing"},
            Cause.START_CRASH,
            "exited with code 1 before it was ready; last line: ValueError: no such thing",
        ),
        (
            90.0,
            {"status": 9},
            Cause.CRASH,
            "main process killed by SIGKILL (not by us), 90.0 s after it became ready",
        ),
        (
            None,
            {"status": 11 | 0x80},
            Cause.START_CRASH,
            "main process killed by SIGSEGV (not by us) before it was ready; native code crashed",
        ),
        (7200.0, {"status": 0}, Cause.CRASH, "exited with code 0, 2.0 h after it became ready"),
        (
            5.0,
            {"status": None},
            Cause.LOST,
            "lost with its exit status (its shim died), 5.0 s after it became ready",
        ),
        (None, {"status": 64 << 8}, Cause.CONFIG, "exited with code 64 before it was ready"),
        (3.0, {"status": 64 << 8}, Cause.CRASH, "exited with code 64, 3.0 s after it became ready"),
        (
            None,
            {"status": 127 << 8, "exec_error": "ENOENT", "command": "/bin/nope"},
            Cause.CONFIG,
            "command not found: /bin/nope",
        ),
        (
            None,
            {"status": 126 << 8, "exec_error": "EACCES", "command": "./x"},
            Cause.CONFIG,
            "not executable (permission denied): ./x",
        ),
    ],
)
def test_sentences(ready_s, facts, cause, sentence):
    reason = reason_of(ready_s, **facts)
    assert (reason.cause, reason.sentence) == (cause, sentence)


def test_the_log_beats_the_status_and_is_quoted():
    line = "ValueError: Free memory on device cuda:0 (3/80 GiB) is less than desired"
    reason = reason_of(status=1 << 8, tail=f"x\n{line}\nEngine core initialization failed\n")
    assert reason.cause is Cause.GPU_BUSY
    assert reason.evidence == line
    assert reason.advice


def test_a_dead_engine_behind_exit_code_0_is_found_in_the_log():
    reason = reason_of(60.0, status=0, tail="EngineDeadError: EngineCore encountered an issue\n")
    assert reason.cause is Cause.ENGINE_DIED
    assert "exited with code 0" in reason.sentence


def test_last_words_beat_the_log():
    bye = ("oom-load", "needs 90 GiB, has 80")
    reason = reason_of(status=1 << 8, tail="Address already in use", bye=bye)
    assert (reason.cause, reason.sentence) == (Cause.OOM_LOAD, "needs 90 GiB, has 80")


def test_last_words_about_starting_are_a_crash_after_ready():
    assert reason_of(9.0, status=0, bye=("config", "hm")).cause is Cause.CRASH


def test_last_words_can_not_claim_what_only_we_decide():
    for word in ("requested", "crash-loop", "nonsense"):
        assert reason_of(9.0, status=256, bye=(word, "x")).cause is Cause.CRASH


def test_an_unknown_exec_error_is_worth_another_try():
    assert exec_failure("EMFILE", "/bin/x", "a/b-0").cause is Cause.START_CRASH


def test_foreign_lines_are_made_fit_for_one_line():
    assert last_line("x\n\x1b[31mred\x1b[0m\tend  \n \n") == "red end"
    assert len(last_line("y" * 10_000)) == 240


def test_a_start_that_hung_is_explained_by_what_its_log_says():
    nixl = """\
(EngineCore pid=8) Exception in thread nixl_handshake_listener:
(EngineCore pid=8) Traceback (most recent call last):
(EngineCore pid=8)   File "/usr/lib/python3.11/threading.py", line 1045, in _bootstrap_inner
(EngineCore pid=8) zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5600')
"""
    driver = Driver().start().born().deadline()
    driver.empty(status=9, tail=nixl)
    reason = driver.state.last_failure
    assert reason.cause is Cause.START_TIMEOUT
    assert "was not ready after 30 min: NIXL's port is taken: 127.0.0.1:5600" in reason.sentence
    assert "starts again with another port" in reason.advice


def test_a_silence_is_explained_by_what_its_log_says():
    stuck = (
        "(EngineCore pid=8) INFO 11-22 17:06:51 [shm_broadcast.py:109] No available shared memory"
        " broadcast block found in 60 seconds. This typically happens when"
    )
    driver = Driver().start().ready()
    driver.member(e.LeaseExpired, 0, SILENT).empty(status=9, tail=stuck)
    reason = driver.state.last_failure
    assert reason.cause is Cause.UNHEALTHY
    assert "sent no heartbeat for 30 s: the engine's worker hangs or is busy" in reason.sentence
    silent = Driver().start().ready()
    silent.member(e.LeaseExpired, 0, SILENT).empty(status=9, tail="all is well\n")
    assert silent.state.last_failure == SILENT
