"""A room of GPUs in virtual time: replica machines that wait at the gate, and memory as numbers.

What the daemon does with real devices, in a few lines: who waits is read from the machines' states,
the gate judges each sample, and what it says goes to the machines at once.
"""

from orchestrator.core import events as e
from orchestrator.core import gate
from orchestrator.core.devices import Device, Memory, Trouble
from orchestrator.core.policy import Gpu, GpuMode, Policy
from orchestrator.core.state import LIVE, Hold, Phase
from orchestrator.wire.ids import ReplicaId
from tests.unit.core_driver import Driver

GIB = 2**30
TOTAL = 80 * GIB


class Room:
    def __init__(self, gpus: int = 1, used: float = 0.25) -> None:
        self.now = 0.0
        self.gate = gate.Gate()
        self.devices = [Device(f"GPU-{index:08d}-aaaa", index) for index in range(gpus)]
        self.used = {device.uuid: round(used * GIB) for device in self.devices}
        self.trouble: dict[str, Trouble] = {}
        self.holders: dict[str, list] = {}
        self.machines: dict[ReplicaId, Driver] = {}
        self.on: dict[ReplicaId, tuple[Device, ...]] = {}
        self.by_hand: set[ReplicaId] = set()
        self.noted: list[tuple[float, str]] = []
        self.reads: list[set[str]] = []

    def replica(self, name: str, *on: int, **gpu) -> Driver:
        policy = Policy(holds=(Hold.GPU,), gpu=Gpu(**gpu))
        machine = Driver(policy, name=name, now=self.now)
        replica = ReplicaId.parse(name)
        self.machines[replica] = machine
        self.on[replica] = tuple(self.devices[index] for index in on or (0,))
        return machine.start()

    def shared(self, name: str, share: float, *on: int) -> Driver:
        return self.replica(name, *on, mode=GpuMode.SHARED, share=share)

    def use(self, gib: float, index: int = 0) -> None:
        self.used[self.devices[index].uuid] = round(gib * GIB)

    def waiters(self) -> list[gate.Waiter]:
        return [
            gate.Waiter(
                replica=replica,
                incarnation=one.state.incarnation,
                devices=self.on[replica],
                policy=one.policy.gpu,
                hold=one.state.holds.get(Hold.GPU),
                by_hand=replica in self.by_hand,
            )
            for replica, one in self.machines.items()
            if gate.looks_at(one.state, self.now)
        ]

    def occupants(self) -> list[gate.Occupant]:
        return [
            gate.Occupant(
                replica=replica,
                uuids=frozenset(device.uuid for device in self.on[replica]),
                phase=one.state.phase,
                mode=one.policy.gpu.mode,
                grows=gate.may_grow(one.state),
            )
            for replica, one in self.machines.items()
            if one.state.phase in LIVE
        ]

    def sample(self) -> gate.Outcome:
        waiters, occupants = self.waiters(), self.occupants()
        uuids = gate.wanted(waiters, occupants)
        self.reads.append(uuids)
        readings = {
            uuid: self.trouble.get(uuid) or Memory(TOTAL, self.used[uuid], TOTAL - self.used[uuid])
            for uuid in uuids
        }
        outcome = gate.step(
            self.gate,
            gate.Sample(
                waiters=waiters, occupants=occupants, readings=readings, holders=self.holders
            ),
            self.now,
        )
        self.gate = outcome.gate
        for replica, told in outcome.told:
            self.machines[replica].now = self.now
            self.machines[replica].feed(told)
        self.noted += [(self.now, reason.sentence) for _, reason in outcome.noted]
        return outcome

    def after(self, seconds: float) -> None:
        """Let time pass, a sample each quarter of a second."""
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            for one in self.machines.values():
                deadline = one.state.deadline
                if deadline is not None and deadline.at <= self.now:
                    one.now = self.now
                    one.feed(e.DeadlineReached(deadline.serial))
            self.sample()

    def until(self, machine: Driver, phase: Phase, within_s: float = 60.0) -> float:
        """Let time pass until it is there; how long that took."""
        began = self.now
        while machine.phase is not phase:
            assert self.now < began + within_s, f"still {machine.phase}: {machine.state.reason}"
            self.after(0.25)
        return self.now - began

    def ready(self, machine: Driver) -> None:
        machine.now = self.now
        machine.ready()
