"""What a seed has to do with: replicas of every kind, who needs whom, who shares a card.

Most fleets are small, because a small one gets through more of the rare situations in the same
number of steps; some are large, so that there is a crowd.
"""

from dataclasses import dataclass, field
from random import Random

import msgspec

from orchestrator.core.fleet import GONE, TOGETHER, Need
from orchestrator.core.groups import Bond
from orchestrator.core.policy import Gpu, GpuMode, Policy, Restart
from orchestrator.core.state import Hold
from orchestrator.wire.ids import ReplicaId
from tests.sim.gpus import SHARE, Card
from tests.sim.lives import FOREVER, Plan


@dataclass
class Fleet:
    """`bonds`: with whom a replica goes down; `cards_of`: which cards it needs."""

    policies: dict = field(default_factory=dict)
    needs: dict = field(default_factory=dict)
    bonds: dict = field(default_factory=dict)
    cards: dict = field(default_factory=dict)
    cards_of: dict = field(default_factory=dict)


def fleet_of(rng: Random) -> Fleet:
    """Draw one to six replicas, rarely ten; later ones may need earlier ones."""
    fleet, ids = Fleet(), []
    size = rng.choice((1, 1, 2, 3, 4)) if rng.random() < 0.9 else rng.choice((6, 10))
    has_cards = rng.random() < 0.3
    for index in range(size):
        name = ReplicaId("t", f"r{index}", 0)
        oneshot = rng.random() < 0.12
        wants = []
        for other in ids:
            if rng.random() < 0.3:
                done = fleet.policies[str(other)].oneshot
                kinds = ("completed",) if done else ("ready", "started")
                wants.append(Need(other, rng.choice(kinds)))
        members = 1 if oneshot else rng.choice((1, 1, 1, 1, 2, 3, 8))
        gpu = draw_cards(rng, fleet, str(name)) if has_cards and rng.random() < 0.7 else None
        fleet.policies[str(name)] = Policy(
            members=1 if gpu is not None and gpu.mode is GpuMode.SHARED else members,
            has_readiness=not oneshot and rng.random() < 0.75,
            drains=rng.random() < 0.7,
            oneshot=oneshot,
            holds=(Hold.DEPENDENCY,) * bool(wants) + (Hold.GPU,) * (gpu is not None),
            gpu=gpu or Gpu(),
            restart=rng.choice((Restart.ALWAYS,) * 6 + (Restart.ON_FAILURE, Restart.NEVER)),
        )
        fleet.needs[name] = wants
        ids.append(name)
    if rng.random() < 0.45:
        bind(rng, fleet, ids)
    return fleet


def bind(rng: Random, fleet: Fleet, ids: list) -> None:
    """One group of all that has no needs and never completes; or dependants that restart, too."""
    strategy = rng.choice(("one-for-all", "rest-for-one", "dependants"))
    if strategy == "dependants":
        for name, needs in fleet.needs.items():
            fleet.bonds[str(name)] = [Bond(need.on) for need in needs]
        return
    free = [name for name in ids if not fleet.needs[name]]
    group = [name for name in free if not may_complete(fleet.policies[str(name)])]
    for at, name in enumerate(group):
        together = strategy == "one-for-all"
        others = [other for other in group if other != name] if together else group[:at]
        fleet.bonds[str(name)] = [Bond(other, "g") for other in others]
        fleet.needs[name] = [Need(other, TOGETHER if together else "started") for other in others]
        if not together:
            fleet.needs[name] += [Need(other, GONE) for other in group[at + 1 :]]
        policy = fleet.policies[str(name)]
        if fleet.needs[name]:
            holds = (Hold.DEPENDENCY, *policy.holds)
            fleet.policies[str(name)] = msgspec.structs.replace(policy, holds=holds)


def may_complete(policy: Policy) -> bool:
    return policy.oneshot or policy.restart is not Restart.ALWAYS


def draw_cards(rng: Random, fleet: Fleet, name: str) -> Gpu:
    """One or two cards of its own, or a place on one that takes two."""
    timeout_s = rng.choice((None, None, 30.0))
    for card in fleet.cards.values():
        taken = sum(card.uuid in uuids for uuids in fleet.cards_of.values())
        if card.mode is GpuMode.SHARED and taken == 1:
            fleet.cards_of[name] = (card.uuid,)
            return Gpu(mode=card.mode, share=SHARE, timeout_s=timeout_s)
    mode = rng.choice((GpuMode.EXCLUSIVE, GpuMode.SHARED))
    count = rng.choice((1, 2)) if mode is GpuMode.EXCLUSIVE else 1
    new = [f"GPU-{len(fleet.cards) + i}" for i in range(count)]
    fleet.cards |= {uuid: Card(uuid, mode) for uuid in new}
    fleet.cards_of[name] = tuple(new)
    return Gpu(mode=mode, share=SHARE, timeout_s=timeout_s)


def troubled_plan(rng: Random, policy: Policy) -> Plan:
    """Draw what a life will do while faults are on; most lives have one fault, some have none."""
    plan = Plan(
        birth_s=rng.choice((0.0, 0.01, 0.3, 3.0)),
        ready_s=rng.choice((0.0, 2.0, 12.0, 40.0, 1200.0, 2500.0)) if policy.has_readiness else 0.0,
        obeys_s=rng.choice((0.0, 0.1, 4.0, 130.0, FOREVER)),
        asks_at_end_s=rng.choice((0.0, 0.0, 0.0, 50.0, 900.0)),
        swallows_term_while_loading=rng.random() < 0.5,
        rest_s=rng.choice((0.0, 0.0, 1.0, FOREVER)),
        kill_s=rng.choice((0.0, 0.02, 0.5, 4.0)),
        reap_s=rng.choice((0.0, 0.0, 0.0, 3.0)),
        works_to_an_end=policy.oneshot,
        asks_more_s=rng.choice((0.0, 0.0, 900.0, 3000.0)),
        frees_s=rng.choice((0.0, 0.2, 8.0, 1e12)),
        tail=rng.choice(("", "", "boom", "CUDA out of memory", "Address already in use")),
    )
    luck = rng.random()
    if luck < 0.05:
        plan.birth_error = rng.choice((("", "no memory"), ("", "busy"), ("ENOENT", "/bin/nope")))
    elif luck < 0.22 and policy.has_readiness:
        status = rng.choice((0, 1 << 8, 1 << 8, 2 << 8, 9, 11))
        plan.start_exit = (rng.choice((0.0, 1.0, 60.0)), status)
        plan.exec_error = "ENOENT" if rng.random() < 0.1 else ""
    elif luck < 0.27 and policy.has_readiness:
        plan.ready_s = FOREVER
    elif luck < 0.9 or policy.oneshot:
        kind = rng.choice(("exit",) * 5 + ("shim", "freeze"))
        status = rng.choice((0, 1 << 8, 9, 2 << 8)) if kind == "exit" else rng.choice((0, 1))
        plan.run_end = (rng.choice((0.0, 1.0, 30.0, 30.0, 590.0, 650.0, 4000.0)), kind, status)
    if rng.random() < 0.08:
        plan.bye = (rng.choice(("config", "oom-load", "port-in-use")), "it says why")
    if rng.random() < 0.06:
        plan.kill_s = plan.rest_s = FOREVER
    return plan
