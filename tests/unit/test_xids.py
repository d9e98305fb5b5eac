"""Errors that GPUs report: in which thread they are awaited, and what follows from each."""

import asyncio
import queue
import threading

import pytest

from orchestrator.core import xids
from orchestrator.core.state import Phase
from orchestrator.host.gpus import Mute
from orchestrator.host.xids import XidListener
from tests.eventually import eventually
from tests.unit.test_daemon_gate import Room, up

A, B = frozenset({"GPU-a"}), frozenset({"GPU-a", "GPU-b"})
DEVICE = "GPU-declared-0"


class Ear:
    """A subscription that a test feeds."""

    def __init__(self, uuids: frozenset[str]) -> None:
        self.uuids = uuids
        self.news: queue.Queue = queue.Queue()
        self.closed = threading.Event()

    def wait(self, timeout_s: float):
        assert timeout_s == 600.0, "nobody is woken often"
        return self.news.get(timeout=30)

    def close(self) -> None:
        self.closed.set()


class Listener:
    """A listener in a loop, and all its ears."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.ears: list[Ear] = []
        self.heard: list[tuple] = []
        self.listener = XidListener(
            self.listen, lambda *one: self.heard.append(one), lambda why: self.heard.append((why,))
        )

    def listen(self, uuids):
        self.ears.append(Ear(uuids))
        return self.ears[-1]

    def want(self, uuids, ears: int) -> None:
        async def inside():
            self.listener.want(uuids)

        self.loop.run_until_complete(inside())
        eventually(lambda: len(self.ears) == ears)

    def turned(self):
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        return self.heard

    def close(self) -> None:
        self.listener.close()
        for ear in self.ears:
            ear.news.put([])
            assert ear.closed.wait(30)
        self.loop.close()


@pytest.fixture
def one():
    made = Listener()
    yield made
    made.close()


def test_one_thread_waits_and_tells_the_loop(one):
    one.want(A, ears=1)
    one.ears[0].news.put([])
    one.ears[0].news.put([("GPU-a", 79)])
    assert eventually(one.turned) == [("GPU-a", 79)]


def test_who_is_wanted_again_before_it_noticed_goes_on(one):
    one.want(A, ears=1)
    one.want(frozenset(), ears=1)
    one.ears[0].news.put([("GPU-a", 79)])
    assert one.ears[0].closed.wait(30)
    assert one.turned() == [], "nobody wanted to hear it"
    one.want(A, ears=2)
    one.want(frozenset(), ears=2)
    one.want(A, ears=2)
    one.ears[1].news.put([("GPU-a", 48)])
    assert eventually(one.turned) == [("GPU-a", 48)]


def test_other_devices_need_another_ear_and_the_old_one_is_not_believed(one):
    one.want(A, ears=1)
    one.want(B, ears=2)
    one.ears[0].news.put([("GPU-a", 79)])
    assert one.ears[0].closed.wait(30)
    one.ears[1].news.put([("GPU-b", 79)])
    assert eventually(one.turned) == [("GPU-b", 79)]


def test_one_that_can_hear_no_more_says_why_and_ends(one):
    one.want(A, ears=1)
    one.ears[0].news.put("NVML: GPU is lost")
    assert eventually(one.turned) == [("NVML: GPU is lost",)]
    assert one.ears[0].closed.wait(30)


# ---- what follows --------------------------------------------------------------------------------


@pytest.fixture
def room(short_path):
    made = Room(short_path)
    made.wanted = []
    made.gate._xids._listener.want = made.wanted.append
    up(made)
    for name in "ab":
        made.make_ready(made.unit(f"two/{name}-0"))
    yield made
    made.gate.close()
    made.turn()
    made.close()


def test_they_are_heard_while_somebody_computes(room):
    assert room.wanted[-1] == {"GPU-declared-0", "GPU-declared-1"}
    for name in "ab":
        unit = room.unit(f"two/{name}-0")
        room.call(room.deployments.begin_stop, [unit], None)
        room.empty(unit)
    assert room.wanted[-1] == frozenset()


@pytest.mark.parametrize("number", sorted(xids.GONE))
def test_a_gpu_that_is_gone_is_quarantined_and_takes_its_worker_along(room, number):
    room.call(room.gate._xids.heard, DEVICE, number)
    unit = room.unit("two/a-0")
    assert unit.state.phase is Phase.STOPPING
    assert f"GPU 0 (GPU-declared) reports Xid {number} (" in unit.state.reason.sentence
    assert room.gate._gate.known[DEVICE].quarantine == xids.words(number)
    room.empty(unit, 9)
    assert (unit.state.phase, unit.state.reason.cause.value) == (Phase.FAILED, "gpu-lost")
    assert room.gate._gate.known[DEVICE].quarantine == xids.words(number), "the cause, not its echo"
    assert room.phase("two/b-0") == "ready"


@pytest.mark.parametrize("answers", [True, False])
def test_a_gpu_in_trouble_is_quarantined_and_asked_whether_it_is_lost(room, answers):
    if not answers:
        room.driver.mute[DEVICE] = Mute("NVML: GPU is lost", lost=True)
    room.call(room.gate._xids.heard, DEVICE, 48)
    assert room.gate._gate.known[DEVICE].quarantine == "Xid 48 (uncorrectable ECC error)"
    assert room.phase("two/a-0") == ("ready" if answers else "stopping")


def test_what_a_program_did_wrong_is_told_and_nothing_else(room):
    room.call(room.gate._xids.heard, DEVICE, 31)
    room.call(room.gate._xids.heard, DEVICE, 999)
    said = [one[3]["reason"] for one in room.log if one[0] == "event" and one[2] == "gpu-xid"]
    assert said == [
        "GPU 0 (GPU-declared): Xid 31 (memory page fault, mostly a bug in a kernel)",
        "GPU 0 (GPU-declared): Xid 999",
    ]
    assert room.phase("two/a-0") == "ready"
    assert not room.gate._gate.known.get(DEVICE).quarantine
