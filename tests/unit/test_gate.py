"""The GPU gate: who is cleared when, and what the others are told meanwhile."""

import pytest
from msgspec.structs import replace

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.core import gate
from orchestrator.core.devices import Holder, Trouble
from orchestrator.core.policy import GpuMode, Policy
from orchestrator.core.reasons import Cause, Reason
from orchestrator.core.state import Hold, Phase
from tests.unit.core_driver import Driver
from tests.unit.gpu_room import GIB, TOTAL, Room

FOREIGN = Holder(pid=4711, command="python train.py", user="x", used_bytes=41 * GIB)


def running(room: Room, name: str = "agg/worker-0", used: float = 70.0, **gpu) -> Driver:
    """A replica that is ready and uses its GPU."""
    one = room.replica(name, **gpu)
    room.until(one, Phase.STARTING)
    room.use(used)
    room.ready(one)
    return one


def crash(room: Room, one: Driver, **facts) -> None:
    one.now = room.now
    one.end(1, **facts)


def test_a_free_gpu_costs_two_samples():
    room = Room()
    one = room.replica("agg/worker-0")
    assert (one.phase, one.cause) == (Phase.WAITING, Cause.WAITING_GPU)
    assert room.until(one, Phase.STARTING) == 0.5


def test_statement_14_memory_freed_8_s_after_the_kill_no_spawn_before_and_soon_after():
    room = Room()
    one = running(room)
    room.after(3.0)
    crash(room, one)
    room.after(8.0)
    assert one.phase is Phase.WAITING
    assert "still holds 70.0 GiB" in one.state.reason.sentence
    room.use(0.25)
    assert room.until(one, Phase.STARTING) <= 0.6
    assert one.state.counters.row == 1, "the crash counts, the wait doesn't"


def test_memory_that_returns_during_the_backoff_costs_nothing_more():
    room = Room()
    one = running(room)
    crash(room, one)
    delay_s = one.state.not_before - room.now
    room.use(0.25)
    assert room.until(one, Phase.STARTING) - delay_s < 0.25


def test_statement_15_memory_that_is_never_freed_is_an_event_and_a_reason_and_costs_no_budget():
    room = Room(used=41.0)
    room.holders[room.devices[0].uuid] = [FOREIGN]
    one = room.replica("agg/worker-0")
    room.after(0.5)
    assert str(one.state.reason) == (
        "GPU 0 (GPU-00000000) still holds 41.0 GiB, up to 1.8 GiB would count as free: "
        "held by pid 4711 (python train.py, user x), not ours; "
        "waits until it is gone; end it if it shouldn't be there"
    )
    room.after(600.0)
    assert one.phase is Phase.WAITING
    assert not one.spawned_at
    assert one.state.counters == Driver().state.counters
    ((noted_at, sentence),) = room.noted
    assert 59 <= noted_at <= 61
    assert "pid 4711" in sentence


def test_statement_16_what_a_foreign_process_held_is_taken_once_it_is_free():
    room = Room(used=41.0)
    room.holders[room.devices[0].uuid] = [FOREIGN]
    one = room.replica("agg/worker-0")
    room.after(100.0)
    room.use(0.3)
    assert room.until(one, Phase.STARTING) <= 0.6


def test_statement_18_an_orphan_that_was_there_first_does_not_poison_the_baseline():
    room = Room(used=30.0)
    one = room.replica("agg/worker-0")
    room.after(60.0)
    known = room.gate.known[room.devices[0].uuid]
    assert known.baseline_bytes == gate.BASELINE_BYTES_MAX
    assert one.phase is Phase.WAITING
    room.use(0.4)
    room.until(one, Phase.STARTING)
    assert room.gate.known[room.devices[0].uuid].baseline_bytes == round(0.4 * GIB)
    crash(room, one)
    room.use(1.7)
    room.after(5.0)
    assert one.phase is Phase.WAITING, "it was less once"


def test_the_baseline_is_not_learnt_while_one_of_ours_is_there():
    room = Room(used=0.9)
    running(room, used=0.1, mode=GpuMode.SHARED, share=0.1)
    room.shared("agg/other-0", 0.1)
    room.after(1.0)
    assert room.gate.known[room.devices[0].uuid].baseline_bytes == round(0.9 * GIB)


def test_statement_19_a_dip_of_one_sample_does_not_open_the_gate():
    room = Room(used=41.0)
    one = room.replica("agg/worker-0")
    for _ in range(20):
        room.use(0.3)
        room.after(0.25)
        room.use(41.0)
        room.after(0.25)
        assert one.phase is Phase.WAITING
    room.use(0.3)
    room.after(0.5)
    assert one.phase is Phase.STARTING


def test_statement_20_a_provider_that_fails_is_a_reason_and_touches_nobody_else():
    room = Room(gpus=2)
    other = room.replica("agg/worker-1", 1)
    room.until(other, Phase.STARTING)
    room.ready(other)
    uuid = room.devices[0].uuid
    room.trouble[uuid] = Trouble("NVML: Driver/library version mismatch")
    one = room.replica("agg/worker-0", 0)
    room.after(600.0)
    assert one.phase is Phase.WAITING
    assert "GPU 0 (GPU-00000000) doesn't answer: NVML: Driver/lib" in one.state.reason.sentence
    assert other.phase is Phase.READY
    del room.trouble[uuid]
    assert room.until(one, Phase.STARTING) <= 0.6


def test_a_wait_with_an_end_fails_as_gpu_busy_and_starts_again_when_asked():
    room = Room(used=41.0)
    one = room.replica("agg/worker-0", timeout_s=120.0)
    room.after(119.0)
    assert one.phase is Phase.WAITING
    room.after(2.0)
    assert (one.phase, one.cause) == (Phase.FAILED, Cause.GPU_BUSY)
    assert "gave up after 2 min: GPU 0" in one.state.reason.sentence
    room.use(0.3)
    one.now = room.now
    one.start()
    assert room.until(one, Phase.STARTING) <= 0.6


def test_all_devices_must_be_free_in_the_same_samples():
    room = Room(gpus=2)
    room.use(41.0, 1)
    one = room.replica("agg/worker-0", 0, 1)
    for busy, free in ((0, 1), (1, 0)) * 5:
        room.use(41.0, busy)
        room.use(0.3, free)
        room.after(0.25)
    assert one.phase is Phase.WAITING
    room.use(0.3, 0)
    room.use(0.3, 1)
    assert room.until(one, Phase.STARTING) == 0.5


def test_starts_on_a_shared_gpu_go_one_by_one():
    room = Room()
    first, second, third = (room.shared(f"disagg/decode-{index}", 0.3) for index in range(3))
    room.after(0.5)
    assert first.phase is Phase.STARTING
    assert second.cause is third.cause is Cause.WAITING_TURN
    assert second.state.reason.sentence == (
        "waits for its turn on GPU 0 (GPU-00000000): disagg/decode-0 is starting there"
    )
    room.reads.clear()
    room.after(60.0)
    assert not any(room.reads), "nobody's memory matters while all wait for their turn"
    room.use(24.0)
    room.ready(first)
    assert room.until(second, Phase.STARTING) == 0.5
    assert third.cause is Cause.WAITING_TURN
    room.use(48.0)
    room.ready(second)
    room.until(third, Phase.STARTING)
    room.use(72.0)
    room.ready(third)
    fourth = room.shared("disagg/decode-3", 0.3)
    room.after(1.0)
    assert fourth.state.reason.sentence == (
        "GPU 0 (GPU-00000000) has 8.0 GiB free, 24.2 GiB are needed"
    )


def test_who_was_cleared_has_its_devices_until_it_starts():
    room = Room()
    first = room.shared("disagg/decode-0", 0.3)
    first.policy = Policy(holds=(Hold.GPU,), gpu=first.policy.gpu, crowded=True)
    second = room.shared("disagg/decode-1", 0.3)
    room.after(2.0)
    assert first.state.holds.keys() == {Hold.TURN}
    assert second.cause is Cause.WAITING_TURN
    room.use(75.0)
    room.after(0.25)
    assert Hold.GPU in first.state.holds, "somebody took it meanwhile"
    room.after(0.25)
    assert "has 5.0 GiB free" in second.state.reason.sentence, "and nobody has it for itself"


def test_an_exclusive_gpu_is_not_shared_however_free_it_looks():
    room = Room()
    running(room, used=0.3)
    late = room.replica("other/worker-0")
    room.after(10.0)
    assert late.state.reason.sentence == "GPU 0 (GPU-00000000) is agg/worker-0's, which is ready"


def test_a_dependency_that_is_lost_again_makes_the_gate_look_again():
    one = Driver(Policy(holds=(Hold.DEPENDENCY, Hold.GPU), crowded=True)).start()
    one.feed(e.Cleared(Hold.DEPENDENCY, 0)).feed(e.Cleared(Hold.GPU, 0))
    assert one.cause is Cause.WAITING_TURN
    one.feed(e.Held(Hold.DEPENDENCY, 0, Reason(Cause.WAITING_DEPENDENCY, "waits for x")))
    assert not gate.looks_at(one.state, 0.0)
    assert one.feed(e.Cleared(Hold.DEPENDENCY, 0)).cause is Cause.WAITING_GPU
    assert gate.looks_at(one.state, 0.0)


def test_a_stop_and_a_start_between_two_samples_ask_anew():
    room = Room()
    one = room.replica("agg/worker-0")
    one.policy = Policy(holds=(Hold.GPU,), crowded=True)
    room.after(1.0)
    assert one.cause is Cause.WAITING_TURN
    one.stop().start()
    one.policy = Policy(holds=(Hold.GPU,))
    assert one.cause is Cause.WAITING_GPU
    room.until(one, Phase.STARTING)


def test_a_lost_gpu_is_quarantined_until_somebody_asks_and_it_answers():
    room = Room()
    uuid = room.devices[0].uuid
    one = room.replica("agg/worker-0")
    room.trouble[uuid] = Trouble("NVML: GPU is lost", lost=True)
    room.after(0.25)
    assert one.phase is Phase.WAITING, "one sample proves nothing"
    room.after(0.25)
    assert (one.phase, one.cause) == (Phase.FAILED, Cause.GPU_LOST)
    assert one.state.reason.sentence == "GPU 0 (GPU-00000000) is quarantined: NVML: GPU is lost"
    del room.trouble[uuid]
    other = room.replica("other/worker-0")
    room.after(0.25)
    assert (other.phase, other.cause) == (Phase.FAILED, Cause.GPU_LOST)
    other.now = room.now
    room.by_hand = set(room.machines)
    other.start()
    room.until(other, Phase.STARTING)
    assert not room.gate.known[uuid].quarantine


def test_a_gpu_that_is_still_lost_when_asked_again_stays_quarantined():
    room = Room()
    room.gate = gate.quarantine(room.gate, room.devices[0].uuid, "Xid 79")
    room.trouble[room.devices[0].uuid] = Trouble("NVML: GPU is lost", lost=True)
    one = room.replica("agg/worker-0")
    room.by_hand = set(room.machines)
    room.after(1.0)
    assert (one.phase, one.cause) == (Phase.FAILED, Cause.GPU_LOST)
    assert room.gate.known[room.devices[0].uuid].quarantine == "NVML: GPU is lost"


def test_numbers_that_drift_are_told_seldom_and_new_holders_at_once():
    room = Room(used=60.0)
    one = room.replica("agg/worker-0")
    told = []
    for step in range(40):
        room.use(60.0 - step / 10)
        room.after(0.25)
        told.append(one.state.reason.sentence)
        if step == 20:
            room.holders[room.devices[0].uuid] = [FOREIGN]
    assert len(set(told)) <= 4
    assert "pid 4711" in told[21]


@pytest.mark.parametrize(
    ("mode", "baseline", "used", "opens"),
    [
        (GpuMode.EXCLUSIVE, 0, 0.79, True),
        (GpuMode.EXCLUSIVE, 0, 0.81, False),
        (GpuMode.EXCLUSIVE, 0.5, 1.29, True),
        (GpuMode.SHARED, 0, 39.7, True),
        (GpuMode.SHARED, 0, 39.8, False),
    ],
)
def test_where_the_line_is(mode, baseline, used, opens):
    room = Room(used=used)
    uuid = room.devices[0].uuid
    room.gate = gate.Gate(known={uuid: gate.Known(baseline_bytes=round(baseline * GIB))})
    one = room.replica("agg/worker-0", mode=mode, share=0.5)
    room.after(1.0)
    assert (one.phase is Phase.STARTING) == opens
    assert TOTAL == 80 * GIB


# ---- one that was being started, and is to stop --------------------------------------------------


def ending_start(room: Room, *, born: bool) -> tuple[Driver, Driver]:
    """A replica that was told to stop while it started, and one that would like its GPU's rest."""
    first = room.shared("agg/worker-0", 0.4)
    room.until(first, Phase.STARTING)
    if born:
        first.born()
    first.now = room.now
    first.stop()
    assert first.phase is Phase.STOPPING
    second = room.shared("agg/worker-1", 0.4)
    room.after(2.0)
    return first, second


def test_who_is_to_stop_and_not_born_yet_may_still_take_memory():
    first, second = ending_start(Room(), born=False)
    assert second.phase is Phase.WAITING
    assert "waits for its turn on GPU 0 (GPU-00000000): agg/worker-0" in str(second.state.reason)
    first.member(e.SpawnFailed, 0, "", "no room")
    assert first.phase is Phase.STOPPED


def test_who_swallows_sigterm_while_it_loads_may_still_take_memory_until_it_is_killed():
    room = Room()
    first, second = ending_start(room, born=True)
    assert second.phase is Phase.WAITING
    first.now = room.now
    first.deadline()
    assert first.ordered(a.Kill)
    room.now = first.now
    room.until(second, Phase.STARTING, 1.0)


def test_who_stops_after_it_was_ready_takes_no_more():
    room = Room()
    first = room.shared("agg/worker-0", 0.4)
    room.until(first, Phase.STARTING)
    room.ready(first)
    first.policy = replace(first.policy, drains=False)
    first.stop()
    room.until(room.shared("agg/worker-1", 0.4), Phase.STARTING, 1.0)
