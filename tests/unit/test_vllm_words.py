"""How the vLLM worker learns and says what its engine's processes do; needs no vLLM."""

import asyncio
import logging
import multiprocessing
import os
import sys
import types

import pytest

from orchestrator.wire.config import WorkerConfig
from tests.eventually import eventually
from workers.runtime.engine import EngineConfigError
from workers.vllm import forks, losses, preload
from workers.vllm.engine import VllmEngine
from workers.vllm.tidings import Cause, LostWorker, Tidings

CONFIG = WorkerConfig(
    life="t/w-0.0#1", kind="aggregated", control="", events="", state_dir="", model="m",
    served_names=["name"],
)  # fmt: skip


class Deaf(Tidings):
    """Tidings as they stand after having heard this."""

    def __init__(self, lost=(), causes=()) -> None:
        self.lost, self.causes = list(lost), list(causes)


def engine_with(*processes) -> object:
    manager = types.SimpleNamespace(processes=[types.SimpleNamespace(**each) for each in processes])
    resources = types.SimpleNamespace(engine_manager=manager)
    return types.SimpleNamespace(engine_core=types.SimpleNamespace(resources=resources))


@pytest.fixture
def tidings():
    """Open tidings, and what they have reported."""
    before = logging.getLogRecordFactory()
    reported: list[str] = []
    tidings = Tidings(lambda text, _percent: reported.append(text))
    tidings.open()
    yield tidings, reported
    tidings.close()
    logging.setLogRecordFactory(before)


def in_a_fork(work) -> None:
    process = multiprocessing.get_context("fork").Process(target=work, name="EngineCore")
    process.start()
    process.join()


@pytest.mark.parametrize(
    ("engine", "tidings", "said"),
    [
        (
            engine_with({"name": "EngineCore", "exitcode": -9}),
            Deaf(),
            "VLLM::EngineCore was killed by SIGKILL",
        ),
        (
            engine_with({"name": "EngineCore", "exitcode": None}),
            Deaf(lost=[LostWorker("VllmWorker-0", -11)]),
            "VLLM::Worker (rank 0) was killed by SIGSEGV",
        ),
        (
            engine_with({"name": "EngineCore", "exitcode": 1}),
            Deaf(causes=[Cause("EngineCore", "RuntimeError: boom")]),
            "VLLM::EngineCore exited with status 1: RuntimeError: boom",
        ),
        (
            engine_with({"name": "EngineCore", "exitcode": None}),
            Deaf(causes=[Cause("EngineCore", "second"), Cause("VllmWorker-1", "first")]),
            "the engine failed: first",
        ),
        (object(), Deaf(), ""),
    ],
)
def test_a_death_is_told_in_one_sentence(engine, tidings, said):
    assert losses.sentence(engine, tidings) == said


def test_hearsay_waits_for_the_name_of_the_dead():
    heard = Deaf(causes=[Cause("EngineCore", "RuntimeError: Executor failed.")])
    engine = engine_with({"name": "EngineCore", "exitcode": None})
    assert losses.sentence(engine, heard) == ""
    final = losses.sentence(engine, heard, final=True)
    assert final == "the engine failed: RuntimeError: Executor failed."
    heard.lost.append(LostWorker("VllmWorker-0", -9))
    assert losses.sentence(engine, heard) == "VLLM::Worker (rank 0) was killed by SIGKILL"


def test_unknown_signals_have_numbers():
    assert losses.ended(-60) == "was killed by signal 60"


def test_a_forks_log_records_come_home(tidings):
    tidings, reported = tidings

    def work() -> None:
        log = logging.getLogger("vllm.v1.executor")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.info("Starting to load model %s...", "tiny")
        log.error("Worker proc %s died unexpectedly (exit code: %s), ...", "VllmWorker-0", -9)
        error = RuntimeError("boom\nand more")
        log.error("EngineCore encountered a fatal error.", exc_info=error)
        logging.getLogger("other").error("EngineCore failed to start.")

    in_a_fork(work)
    eventually(lambda: tidings.causes, 5)
    assert reported == ["loading weights"]
    assert tidings.lost == [LostWorker("VllmWorker-0", -9)]
    assert tidings.causes == [Cause("EngineCore", "RuntimeError: boom")]


def test_a_worker_that_dies_unlogged_is_heard_of_all_the_same(tidings):
    heard, _ = tidings

    def engine_core():
        fork = multiprocessing.get_context("fork")
        worker = fork.Process(target=lambda: os.kill(os.getpid(), 9), name="VllmWorker-0")
        worker.start()
        worker.join()

    in_a_fork(engine_core)
    eventually(lambda: heard.lost == [LostWorker("VllmWorker-0", -9)])


def test_a_full_pipe_costs_nothing(tidings):
    tidings, _ = tidings
    log = logging.getLogger("vllm.flood")
    log.propagate = False
    for _ in range(5000):
        log.error("Worker proc %s died unexpectedly (exit code: %s)", "VllmWorker-0", -9)
    eventually(lambda: tidings.lost, 5)
    assert len(tidings.lost) <= 20


def test_a_bad_format_string_is_left_to_logging(tidings):
    log = logging.getLogger("vllm.bad")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    log.error("%d", "not a number")


def open_in_a_fork(fd: int) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.fstat(fd)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def test_forks_let_go_of_the_hosts_sockets():
    event, (read, write) = os.eventfd(0), os.pipe()
    hygiene = forks.Hygiene()
    assert open_in_a_fork(event)
    hygiene.begin()
    assert not open_in_a_fork(event)
    assert open_in_a_fork(write), "a pipe may be the engine's own"
    hygiene.end()
    assert open_in_a_fork(event)
    for fd in (event, read, write):
        os.close(fd)


def test_processes_are_forked_only_where_that_is_safe(monkeypatch):
    monkeypatch.setenv(forks.METHOD_ENV, "fork")
    assert forks.choose(preloaded=True) == "fork"
    assert forks.choose(preloaded=False) == "spawn"
    monkeypatch.setenv(forks.METHOD_ENV, "spawn")
    assert forks.choose(preloaded=True) == "spawn"


def test_what_was_set_too_late_is_known(monkeypatch):
    assert preload.adopt_environment() == []
    read_at_import = {"HF_HOME": None, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": None}
    monkeypatch.setattr(preload, "preloaded_env", read_at_import)
    hub = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", hub)
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert preload.adopt_environment() == ["HF_HOME"]
    assert hub.HF_HUB_OFFLINE is True


def test_without_vllm_the_interpreter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "workers.vllm.arguments", raising=False)
    monkeypatch.delitem(sys.modules, "workers.vllm.launch", raising=False)
    engine = VllmEngine(CONFIG)
    with pytest.raises(EngineConfigError) as caught:
        asyncio.run(engine.start(lambda _text, _percent: None))
    assert sys.executable in str(caught.value)
    asyncio.run(engine.stop(1))
