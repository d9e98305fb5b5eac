"""The gate's hands in virtual time: when the driver is asked, and what is made of its answers."""

from types import SimpleNamespace

import msgspec
import pytest

from orchestrator.core import events as e
from orchestrator.core.declared import declared
from orchestrator.core.plan import PlannedWorker
from orchestrator.core.policy import GpuMode, Policy
from orchestrator.core.state import Hold, Phase
from orchestrator.daemon import deployment, policies
from orchestrator.daemon.deployment import Deployment
from orchestrator.daemon.gate import GpuGate
from orchestrator.daemon.reading import adopted
from orchestrator.host.gpu_holders import Found
from orchestrator.host.gpus import Memory, Mute
from orchestrator.host.lane import LateError
from orchestrator.host.tagged import make_nonce
from orchestrator.topology.policies import GpuPolicy
from orchestrator.wire.ids import LifeId, ReplicaId
from tests.unit.daemon_stage import Stage

GIB = 2**30
TWO = """
name = "two"
[processes.a]
command = ["a"]
gpus = 1
[processes.b]
command = ["b"]
gpus = 1
"""


class Driver:
    """A provider and its lane: answers at once, unless told otherwise."""

    judges = True
    pids_are_ours = True

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.mute: dict[str, Mute] = {}
        self.hangs = False
        self.reads: list[set[str]] = []
        self.closed = 0

    async def call(self, function, deadline_s):
        if self.hangs:
            raise LateError(f"the driver hasn't answered for {deadline_s:g} s")
        return function()

    def read(self, uuids):
        self.reads.append(set(uuids))
        used = {uuid: self.used.get(uuid, 0) for uuid in uuids}
        return {
            uuid: self.mute.get(uuid) or Memory(80 * GIB, used[uuid], 80 * GIB - used[uuid])
            for uuid in uuids
        }

    def users(self, uuid):
        return []

    def minor(self, uuid):
        return None

    def listen(self, uuids):
        return None

    def close(self) -> None:
        self.closed += 1


class Room(Stage):
    """A stage with two GPUs."""

    inventory = declared("2xH100")

    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.driver = Driver()
        self.gate = self.make_gate()

    def make_gate(self) -> GpuGate:
        return GpuGate(
            self.driver, self.driver, run_dir=self.run_dir, units=self.supervisor.units,
            lives={}, tell=self.supervisor.tell, publisher=self,
        )  # fmt: skip

    def changed(self, unit, before) -> None:
        super().changed(unit, before)
        self.gate.changed(unit, before)

    def starts(self, *names: str) -> bool:
        """These are starting or ready, and no others."""
        going = {Phase.STARTING, Phase.READY}
        on = {str(one.id) for one in self.supervisor.units.values() if one.state.phase in going}
        return on == {f"two/{name}-0" for name in names}

    def crash(self, name: str, code: int = 1, tail: str = "") -> None:
        unit = self.unit(f"two/{name}-0")
        incarnation = unit.state.incarnation
        self.call(self.supervisor.post, unit.id, e.MainExited(0, incarnation, code << 8))
        facts = e.ExitFacts(status=code << 8, tail=tail)
        self.call(self.supervisor.post, unit.id, e.TreeEmptied(0, incarnation, facts))


@pytest.fixture
def room(short_path):
    one = Room(short_path)
    yield one
    one.gate.close()
    one.turn()
    one.close()


def up(room: Room) -> Deployment:
    found = room.up(TWO)
    room.after(1.0)
    return found


def test_the_driver_is_asked_while_somebody_waits_and_never_else(room):
    room.up(TWO)
    room.after(0.6)
    assert room.starts("a", "b")
    assert len(room.driver.reads) == 2
    assert room.driver.closed == 1
    room.after(5.0)
    assert len(room.driver.reads) == 2
    timers = [one for one in room.loop._scheduled if "GpuGate" in str(one)]
    assert not timers, "an idle gate has no timer"


def test_a_backoff_is_waited_out_without_questions(room):
    up(room)
    for _ in range(3):
        room.make_ready(room.unit("two/a-0"))
        room.crash("a")
        room.jump(10.0)
        room.after(1.0)
    room.make_ready(room.unit("two/a-0"))
    room.crash("a")
    asked = len(room.driver.reads)
    room.after(5.0)
    assert room.unit("two/a-0").state.not_before > room.loop.now_s + 1.5
    assert len(room.driver.reads) == asked
    room.after(4.0)
    assert room.starts("a", "b")


def test_statement_15_a_minute_of_waiting_is_an_event_and_costs_nothing(room):
    room.driver.used["GPU-declared-0"] = 41 * GIB
    room.up(TWO)
    room.after(58.0)
    assert room.starts("b")
    assert not [what for _, what in room.told() if what == "gpu-held"]
    room.after(4.0)
    ((subject, _, details),) = [
        one[1:] for one in room.log if one[0] == "event" and one[2] == "gpu-held"
    ]
    assert subject == "two/a-0"
    assert "GPU 0 (GPU-declared) still holds 41.0 GiB" in details["reason"]
    room.after(600.0)
    state = room.unit("two/a-0").state
    assert (state.phase, state.incarnation) == (Phase.WAITING, 0)
    assert (state.counters.row, state.counters.tallies) == (0, {})
    room.driver.used.clear()
    room.after(0.6)
    assert room.starts("a", "b")


@pytest.mark.parametrize(("written", "limit_s"), [("", 120.0), ("[gpu]\ntimeout = '10m'\n", 600.0)])
def test_a_build_does_not_wait_for_ever_unless_the_file_says_how_long(room, written, limit_s):
    room.driver.used["GPU-declared-0"] = 41 * GIB
    found = room.up(TWO + written, gpu_timeout_s=120.0)
    room.after(limit_s - 2.0)
    assert room.phase("two/a-0") == "waiting"
    room.after(4.0)
    state = room.unit("two/a-0").state
    assert (state.phase, state.reason.cause.value) == (Phase.FAILED, "gpu-busy")
    assert room.starts("b")
    kept = deployment.decode(deployment.encode(found.kept))
    assert adopted(kept).topology.processes["a"].gpu.timeout_s == limit_s


def test_statement_20_a_driver_that_hangs_is_a_reason_and_touches_nobody_else(room):
    up(room)
    room.make_ready(room.unit("two/b-0"))
    room.make_ready(room.unit("two/a-0"))
    room.driver.hangs = True
    room.crash("a")
    room.after(30.0)
    waits = room.unit("two/a-0").state
    assert waits.phase is Phase.WAITING
    assert "doesn't answer: the driver hasn't answered for 15 s" in waits.reason.sentence
    assert room.unit("two/b-0").state.phase is Phase.READY
    room.driver.hangs = False
    room.after(0.6)
    assert room.starts("a", "b")


def test_a_stop_ends_the_wait_and_the_questions(room):
    room.driver.used["GPU-declared-0"] = 41 * GIB
    up(room)
    room.call(room.supervisor.request, room.unit("two/a-0"), e.StopRequested)
    assert room.unit("two/a-0").state.phase is Phase.STOPPED
    room.after(0.5)
    asked = len(room.driver.reads)
    room.after(5.0)
    assert len(room.driver.reads) == asked
    assert room.driver.closed == 1


def test_a_new_daemon_knows_the_baselines_of_this_boot_and_no_others(room):
    room.driver.used["GPU-declared-0"] = GIB // 4
    up(room)
    kept = msgspec.json.decode(room.run_dir.gpus.read_bytes())
    assert kept["known"]["GPU-declared-0"]["baseline_bytes"] == GIB // 4
    assert room.make_gate()._gate.known == room.gate._gate.known != {}
    room.run_dir.gpus.write_bytes(msgspec.json.encode(kept | {"boot": "another"}))
    assert room.make_gate()._gate.known == {}


def test_a_worker_that_dies_of_its_gpu_has_it_quarantined_for_all(room):
    up(room)
    room.make_ready(room.unit("two/a-0"))
    room.crash("a", tail="NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\n")
    assert room.unit("two/a-0").state.phase is Phase.FAILED
    why = room.gate._gate.known["GPU-declared-0"].quarantine
    assert why.startswith("two/a-0: ")
    assert "gpu-quarantined" in {what for _, what in room.told()}
    again = room.make_gate()
    assert again._gate.known["GPU-declared-0"].quarantine == why
    room.call(room.supervisor.request, room.unit("two/a-0"), e.StartRequested)
    room.after(1.0)
    assert room.starts("a", "b")
    assert not room.gate._gate.known["GPU-declared-0"].quarantine


def test_a_file_may_say_that_nobody_shall_look(room):
    room.driver.used["GPU-declared-0"] = 41 * GIB
    room.up(TWO + '[gpu]\nmode = "off"\n')
    assert room.starts("a", "b")
    assert not room.driver.reads


def test_who_turns_the_gate_off_for_good_is_not_held(room):
    room.driver.judges = False
    room.driver.used["GPU-declared-0"] = 41 * GIB
    up(room)
    assert room.starts("a", "b")
    assert not room.driver.reads


def test_whose_a_holder_is(room):
    life = LifeId.parse("two/a-0.0#1")
    here = SimpleNamespace(id=life, record=SimpleNamespace(shim=SimpleNamespace(pid=700)))
    room.gate._lives = {life: here}

    def holder(tag="", sid=1):
        found = Found(pid=71, sid=sid, command="x", user="u", tag=tag)
        one = room.gate._holder(found)
        return one.worker, one.orphan

    def tag(of: str, folder=room.run_dir.root) -> str:
        return f"{of}/{make_nonce(folder, of)}"

    assert holder(tag("two/a-0.0#1")) == ("two/a-0.0", False)
    assert holder(sid=700) == ("two/a-0.0", False), "setproctitle wrote over its tag"
    assert holder() == ("", False)
    assert holder(tag("two/a-0.0#9", room.state_dir.root)) == ("", False)
    assert not room.gate._kills
    assert holder(lost := tag("two/a-0.0#9")) == ("two/a-0.0#9", True)
    assert set(room.gate._kills) == {lost}
    room.gate._end_orphans()
    assert not room.gate._kills, "nobody carries that tag any more"


@pytest.mark.parametrize(
    ("written", "part", "flags", "mode", "share"),
    [
        ({}, 1.0, {}, GpuMode.EXCLUSIVE, 0.92),
        ({"mode": "shared"}, 1.0, {}, GpuMode.SHARED, 0.92),
        ({"mode": "shared"}, 1.0, {"gpu-memory-utilization": 0.4}, GpuMode.SHARED, 0.4),
        ({}, 0.5, {}, GpuMode.SHARED, 0.46),
        ({}, 0.5, {"gpu-memory-utilization": 0.3}, GpuMode.SHARED, 0.3),
    ],
)
def test_what_must_be_free_comes_from_the_file(written, part, flags, mode, share):
    replica = ReplicaId.parse("two/a-0")
    member = PlannedWorker(
        id="two/a-0.0", replica=replica, member=0, kind="aggregated", options=flags,
        gpus=(0,), gpu_uuids=("GPU-1",), gpu_share=part,
    )  # fmt: skip
    found = policies.with_gpus(Policy(), GpuPolicy(**written), (member,))
    assert found.holds == (Hold.GPU,)
    assert (found.gpu.mode, found.gpu.share) == (mode, share)
    assert policies.with_gpus(Policy(), GpuPolicy(mode="off"), (member,)).holds == ()
    bare = msgspec.structs.replace(member, gpus=(), gpu_uuids=())
    assert policies.with_gpus(Policy(), GpuPolicy(), (bare,)).holds == ()
