"""Who has which GPU, while a placement is worked out.

One rule for each way of asking: GPUs that are named, whole ones, or a part of one. What a wish
can't get is refused with what is missing and with who has it.
"""

from collections.abc import Collection, Iterable
from functools import cached_property

import msgspec

from orchestrator.core.connected import closest
from orchestrator.core.inventory import Gpu, Inventory
from orchestrator.wire.ids import ReplicaId

LEAVING, STRANGER = 1, 1000
"""What it costs to take a GPU whose users end, and one that somebody holds who isn't ours."""
SLIP = 1e-9
"""Thirds must add up to one in spite of what floats make of them."""


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker of another topology has. `cpus`: those that its compute threads keep to."""

    who: str
    uuid: str = ""
    share: float = 1.0
    cpus: tuple[int, ...] = ()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What each of a replica's workers asks for: named GPUs, a number of whole ones, or a part.

    `named` has those of all members, in order. `has`: what each has now.
    """

    replica: ReplicaId
    members: int = 1
    named: tuple[int | str, ...] = ()
    count: int = 0
    fraction: float = 0.0
    has: tuple[tuple[str, ...], ...] = ()

    @property
    def who(self) -> str:
        """The worker that asks, or the replica where several do."""
        return f"{self.replica}.0" if self.members == 1 else str(self.replica)


class Table:
    """Takes GPUs for one wish after the other.

    `leaving`: UUIDs of GPUs whose present users end; `ours`: of those that this topology has.
    `strange`: GPUs that somebody has memory of who isn't ours.
    """

    def __init__(
        self,
        inventory: Inventory,
        others: Iterable[Holding],
        *,
        leaving: Collection[str] = (),
        ours: Iterable[str] = (),
    ) -> None:
        self._inventory = inventory
        self._owner: dict[str, str] = {}
        self._sharers: dict[str, dict[str, float]] = {}
        for other in others:
            if other.uuid and other.share < 1:
                self._sharers.setdefault(other.uuid, {})[other.who] = other.share
            elif other.uuid:
                self._owner[other.uuid] = other.who
        known = {*ours, *leaving, *self._owner, *self._sharers}
        self.strange = {gpu.uuid for gpu in inventory.gpus if gpu.held and gpu.uuid not in known}
        self._cost = dict.fromkeys(leaving, LEAVING) | dict.fromkeys(self.strange, STRANGER)
        self.refusals: dict[str, str] = {}
        """The first thing that is missing for each role: the rest follows from it."""

    @cached_property
    def _near(self) -> dict[str, dict[str, int]]:
        return self._inventory.closeness()

    def take(self, wish: Wish) -> list[tuple[Gpu, ...]]:
        """Return the GPUs of each member; none where it was refused."""
        if wish.named:
            return self._named(wish)
        if wish.fraction:
            return self._parts(wish)
        if wish.count:
            return self._whole(wish)
        return [()] * wish.members

    def _named(self, wish: Wish) -> list[tuple[Gpu, ...]]:
        found = []
        for wanted in wish.named:
            gpu = self._inventory.find(wanted)
            if gpu is None:
                self._refuse(wish, f"GPU {wanted} isn't there; GPUs found: {self._inventory}")
            elif gpu.uuid in self._owner:
                self._refuse(wish, f"GPU {wanted} is already {self._owner[gpu.uuid]}'s")
            elif gpu.uuid in self._sharers:
                sharers = " and ".join(self._sharers[gpu.uuid])
                self._refuse(wish, f"GPU {wanted} is shared by {sharers} already")
            else:
                self._owner[gpu.uuid] = wish.who
                found.append(gpu)
        if len(found) < len(wish.named):
            return [()] * wish.members
        return self._dealt(found, wish.members)

    def _whole(self, wish: Wish) -> list[tuple[Gpu, ...]]:
        need = wish.count * wish.members
        # CUDA shows a process one MIG instance, however many it is given, and NCCL joins none.
        free = [
            gpu
            for gpu in self._inventory.gpus
            if gpu.uuid not in self._owner
            and gpu.uuid not in self._sharers
            and (need == 1 or not gpu.is_part)
        ]
        if len(free) < need:
            self._refuse(wish, self._too_few(wish, need, len(free)))
            return [()] * wish.members
        by_uuid = {gpu.uuid: gpu for gpu in free}
        has = [[by_uuid[uuid] for uuid in each if uuid in by_uuid] for each in wish.has]
        if len(has) == wish.members and all(len(each) == wish.count for each in has):
            dealt = [tuple(each) for each in has]
        else:
            near = self._near if need > 1 else {}
            chosen = closest(free, need, near, self._cost)
            dealt = self._dealt_near(chosen, wish.members)
        for gpus in dealt:
            self._owner |= dict.fromkeys((gpu.uuid for gpu in gpus), wish.who)
        return dealt

    def _dealt_near(self, gpus: tuple[Gpu, ...], members: int) -> list[tuple[Gpu, ...]]:
        """Give each member of a gang GPUs that are near to each other."""
        each, left, dealt = len(gpus) // members, list(gpus), []
        for _ in range(members):
            mine = closest(left, each, self._near if each > 1 else {}, {})
            left = [gpu for gpu in left if gpu not in mine]
            dealt.append(mine)
        return dealt

    @staticmethod
    def _dealt(gpus: list[Gpu], members: int) -> list[tuple[Gpu, ...]]:
        each = len(gpus) // members
        return [tuple(gpus[first * each : (first + 1) * each]) for first in range(members)]

    def _parts(self, wish: Wish) -> list[tuple[Gpu, ...]]:
        """Find a part for each member; those of a gang are never together, which NCCL refuses."""
        chosen: list[Gpu] = []
        for member in range(wish.members):
            has = wish.has[member] if member < len(wish.has) else ()
            fits = [gpu for gpu in self._inventory.gpus if self._fits(gpu, wish, chosen)]
            if not fits:
                self._refuse(wish, self._no_part(wish))
                return [()] * wish.members
            chosen.append(
                min(
                    fits,
                    key=lambda gpu: (
                        gpu.uuid not in has,
                        self._cost.get(gpu.uuid, 0),
                        gpu.uuid not in self._sharers,
                    ),
                )
            )
        for member, gpu in enumerate(chosen):
            sharers = self._sharers.setdefault(gpu.uuid, {})
            sharers[f"{wish.replica}.{member}"] = wish.fraction
        return [(gpu,) for gpu in chosen]

    def _fits(self, gpu: Gpu, wish: Wish, chosen: list[Gpu]) -> bool:
        used = sum(self._sharers.get(gpu.uuid, {}).values()) + wish.fraction
        return gpu.uuid not in self._owner and gpu not in chosen and used <= 1 + SLIP

    # ---- what is said of what can't be had -----------------------------------------------------

    def _too_few(self, wish: Wish, need: int, free: int) -> str:
        needs = f"{wish.who} needs {need} GPU{'s' * (need != 1)}"
        if not self._inventory.gpus:
            return (
                f"{needs} and this machine has none; use --engine sim, or install the CPU build "
                "of vLLM"
            )
        parts = any(gpu.is_part for gpu in self._inventory.gpus) and need > 1
        alone = " (an instance of MIG works alone)" if parts else ""
        left = f"{free} of {len(self._inventory.gpus)} left{alone}"
        return f"{needs}, {left}{self._who_has()}; GPUs found: {self._inventory}"

    def _no_part(self, wish: Wish) -> str:
        what = f"no GPU has {wish.fraction:g} of itself left"
        if wish.members > 1:
            what = f"the ranks of {wish.who} need {wish.members} GPUs with {wish.fraction:g} left"
        return f"{what}{self._who_has()}; GPUs found: {self._inventory}"

    def _who_has(self) -> str:
        """Name the present holders, and their GPUs by index."""
        indices = {gpu.uuid: gpu.index for gpu in self._inventory.gpus}
        found: dict[str, list[str]] = {}
        for uuid, who in self._owner.items():
            if uuid in indices:
                found.setdefault(who, []).append(str(indices[uuid]))
        for uuid, sharers in self._sharers.items():
            for who, share in sharers.items():
                if uuid in indices:
                    found.setdefault(who, []).append(f"{share:g} of {indices[uuid]}")
        said = "; ".join(f"{who} has {', '.join(each)}" for who, each in found.items())
        return f": {said}" if said else ""

    def _refuse(self, wish: Wish, text: str) -> None:
        self.refusals.setdefault(wish.replica.role, text)
