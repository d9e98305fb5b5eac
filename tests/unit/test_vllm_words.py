"""How the vLLM worker learns and says what its engine's processes do; needs no vLLM."""

import asyncio
import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import types
from multiprocessing import popen_fork
from pathlib import Path

import msgspec
import pytest

from orchestrator.wire.config import Gang, WorkerConfig
from tests.e2e.conftest import zombie
from tests.eventually import eventually
from workers.runtime.engine import EngineConfigError
from workers.vllm import forks, guard, losses, preload, telling
from workers.vllm.engine import VllmEngine, meeting_flags
from workers.vllm.tidings import Cause, LostWorker, Tidings

ROOT = Path(__file__).resolve().parents[2]
CONFIG = WorkerConfig(
    life="t/w-0.0#1", kind="aggregated", control="", events="", state_dir="", model="m",
    served_names=["name"],
)  # fmt: skip


class Deaf(Tidings):
    """Tidings as they stand after having heard this."""

    def __init__(self, lost=(), causes=()) -> None:
        self.lost, self.causes = list(lost), list(causes)


def engine_with(*processes, coordinator=None) -> object:
    manager = types.SimpleNamespace(processes=[types.SimpleNamespace(**each) for each in processes])
    resources = types.SimpleNamespace(engine_manager=manager)
    if coordinator is not None:
        proc = types.SimpleNamespace(name="VLLM_DP_Coordinator", exitcode=coordinator[0])
        resources.coordinator = types.SimpleNamespace(proc=proc)
    return types.SimpleNamespace(engine_core=types.SimpleNamespace(resources=resources))


@pytest.fixture
def tidings(tmp_path):
    """Open tidings, and what they have reported."""
    before = logging.getLogRecordFactory(), popen_fork.Popen.poll, threading.excepthook
    reported: list = []
    tidings = Tidings(lambda *said: reported.append(said), tmp_path)
    tidings.open()
    yield tidings, reported
    tidings.close()
    logging.setLogRecordFactory(before[0])
    popen_fork.Popen.poll, threading.excepthook = before[1:]
    telling.installed = False


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


@pytest.mark.parametrize(
    ("coordinator", "lost", "said"),
    [
        (None, False, ""),
        ([None], False, ""),
        ([-9], True, "VLLM::DPCoordinator was killed by SIGKILL"),
    ],
)
def test_the_ranks_coordinator_is_missed(coordinator, lost, said):
    """By us: vLLM goes on without it, and lets requests to idle ranks wait for ever."""
    engine = engine_with({"name": "EngineCore_DP0", "exitcode": None}, coordinator=coordinator)
    assert losses.lost_coordinator(engine) == lost
    assert losses.sentence(engine, Deaf()) == said


def test_hearsay_waits_for_the_name_of_the_dead():
    heard = Deaf(causes=[Cause("EngineCore", "RuntimeError: Executor failed.")])
    engine = engine_with({"name": "EngineCore", "exitcode": None})
    assert losses.sentence(engine, heard) == ""
    final = losses.sentence(engine, heard, final=True)
    assert final == "the engine failed: RuntimeError: Executor failed."
    heard.lost.append(LostWorker("VllmWorker-0", -9))
    assert losses.sentence(engine, heard) == "VLLM::Worker (rank 0) was killed by SIGKILL"


def test_ranks_are_told_where_they_meet():
    gang = Gang(member=1, size=2, host="127.0.0.1", port=30001)
    assert meeting_flags(None) == {}
    assert meeting_flags(gang) == {
        "data-parallel-address": "127.0.0.1",
        "data-parallel-rpc-port": 30001,
    }


class Pinned:
    """An engine that has pinned KV cache until `pause_generation` returns."""

    def __init__(self) -> None:
        self.timeouts = []

    async def pause_generation(self, *, mode, clear_cache):
        assert (mode, clear_cache) == ("wait", False)

    def shutdown(self, timeout):
        self.timeouts.append(timeout)


@pytest.mark.parametrize(
    ("kind", "drained", "timeout_s"),
    [("prefill", False, 5.0), ("prefill", True, 10.0), ("decode", False, 10.0)],
)
def test_what_nobody_fetched_is_not_waited_for_twice(kind, drained, timeout_s):
    """EngineCore doesn't end while anything is pinned, not even when it is told to."""
    engine = VllmEngine(msgspec.structs.replace(CONFIG, kind=kind))
    engine._engine = Pinned()

    async def end():
        if drained:
            await engine.wait_fetched()
        await engine.stop(10.0)

    asyncio.run(end())
    assert engine._engine.timeouts == [timeout_s]


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
    assert reported == [("loading weights", None)]
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


TAKEN = OSError(errno.EADDRINUSE, "Address already in use (addr='tcp://127.0.0.1:5600')")


def test_a_thread_that_finds_its_port_taken_ends_its_process(tidings):
    """NIXL's listener; EngineCore waits for it without a limit."""
    heard, _ = tidings
    statuses = []

    def engine_core(error):
        def listen():
            raise error

        thread = threading.Thread(target=listen, name="nixl_handshake_listener")
        thread.start()
        thread.join()

    fork = multiprocessing.get_context("fork")
    for error in (TAKEN, ValueError("what a stranger sent")):
        process = fork.Process(target=engine_core, args=(error,), name="EngineCore")
        process.start()
        process.join()
        statuses.append(process.exitcode)
    assert statuses == [1, 0]
    said = f"OSError: [Errno {errno.EADDRINUSE}] {TAKEN.strerror} in thread nixl_handshake_listener"
    eventually(lambda: heard.causes == [Cause("EngineCore", said)])


def test_what_was_said_before_the_end_is_heard_at_the_end(tidings):
    heard, _ = tidings
    heard._teller.tell("cause", "RuntimeError: boom")
    heard.close()
    assert [cause.text for cause in heard.causes] == ["RuntimeError: boom"]


def test_progress_bars_are_percents_of_what_they_load(tidings):
    heard, reported = tidings
    teller = heard._teller
    teller.bar("Loading safetensors checkpoint shards", 3, 8)
    teller.bar("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE)", 8.0, 8)
    teller.bar("Processed prompts", 1, 2)
    teller.bar("Multi-thread loading shards", 1, None)
    eventually(lambda: len(reported) == 2, 5)
    assert reported == [("loading weights", 38.0), ("capturing CUDA graphs", 100.0)]


SPAWNED = """
import logging, sys, threading
from workers.vllm.plugin import register
register()
loaded = "workers.vllm.telling" in sys.modules
logging.getLogger("vllm.x").warning("Starting to load model %s", "tiny")
print(loaded, flush=True)
threading.Event().wait(60 if loaded else 0)
"""


def spawn(**env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SPAWNED], env=os.environ | env, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def test_the_plugin_is_inert_in_a_vllm_that_is_none_of_ours():
    with spawn() as process:
        assert process.stdout.read() == "False\n"


def test_the_plugin_tells_for_a_spawned_process(tidings):
    _, reported = tidings
    with spawn() as process:
        eventually(lambda: reported == [("loading weights", None)], 10)
        process.kill()


def test_a_spawned_process_ends_with_its_host(tmp_path):
    """Its host is here a process that only sleeps; killed, it says nothing to anybody."""
    host = subprocess.Popen(["sleep", "1000"])
    where = f"{host.pid}:{guard.starttime(host.pid)}:{tmp_path}/none"
    with spawn(DYNORCH_TIDINGS=where) as process:
        assert process.stdout.readline() == "True\n"
        host.kill()
        host.wait()
        assert process.wait(10) == -signal.SIGTERM


def test_a_process_whose_host_is_gone_already_ends_at_once(tmp_path):
    with spawn(DYNORCH_TIDINGS=f"{os.getpid()}:1:{tmp_path}/none") as process:
        assert process.wait(10) == -signal.SIGTERM


def test_a_fork_ends_with_its_host_too(tmp_path):
    """Host and engine are forks here: the host is killed, and the engine's guard ends the rest."""
    pids = tmp_path / "pids"

    def host():
        Tidings(lambda *_: None, tmp_path).open()
        engine = os.fork()
        if engine:
            pids.write_text(str(engine))
        threading.Event().wait()

    process = multiprocessing.get_context("fork").Process(target=host)
    process.start()
    engine = int(eventually(lambda: pids.exists() and pids.read_text(), 10))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    eventually(lambda: not Path(f"/proc/{engine}").exists() or zombie(engine), 15)


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
