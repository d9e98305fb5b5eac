"""The order in which a change becomes true, decided anew after every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.core.fleet import Need
from orchestrator.core.rollout import Part, Task, decide, failure
from orchestrator.core.state import Phase, State, Want
from orchestrator.wire.ids import ReplicaId


def part(name, phase=Phase.READY, task=Task.NONE, want=Want.UP, **facts):
    role, _, number = name.rpartition("-")
    replica = ReplicaId("agg", role, int(number))
    facts = {key: frozenset(value) if key in {"holds", "wants", "after"} else value
             for key, value in facts.items()}  # fmt: skip
    return Part(
        replica=replica,
        state=State(name=str(replica), phase=phase, want=want),
        task=task,
        **facts,
    )


def moves(*parts, halted=False, answering=True):
    decision = decide(parts, halted=halted, answering=answering)
    return [(each.do, f"{each.replica.role}-{each.replica.replica}") for each in decision.moves]


RENEW, COME, LEAVE, RENEWING = Task.RENEW, Task.COME, Task.LEAVE, Task.RENEWING


def test_nothing_to_do_is_over():
    assert decide([part("w-0"), part("w-1")], halted=False).over


def test_one_at_a_time_in_each_role():
    assert moves(part("w-0", task=RENEW), part("w-1", task=RENEW), part("v-0", task=RENEW)) == [
        ("renew", "w-0"), ("renew", "v-0"),
    ]  # fmt: skip


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.STOPPING, Phase.WAITING, Phase.STARTING])
def test_the_next_waits_until_the_role_is_whole(phase):
    fresh = part("w-0", phase, fresh=True)
    assert moves(fresh, part("w-1", task=RENEW)) == []
    assert moves(part("w-0", phase, RENEWING), part("w-1", task=RENEW)) == []


def test_the_next_waits_until_the_frontends_know_the_last():
    assert moves(part("w-0", fresh=True), part("w-1", task=RENEW), answering=False) == []


def test_who_does_not_serve_need_not_wait():
    idle = [part("w-0", Phase.FAILED, RENEW), part("w-1", Phase.WAITING, RENEW)]
    assert moves(*idle, part("w-2", task=RENEW)) == [("renew", "w-0"), ("renew", "w-1")]


def test_what_was_stopped_by_hand_stays_so_with_its_new_configuration():
    assert moves(part("w-0", Phase.STOPPED, RENEW, Want.DOWN)) == [("swap", "w-0")]


def test_a_failure_of_another_does_not_stop_it():
    """Statement 33's other half: it isn't started for another's change either."""
    assert moves(part("w-0", Phase.FAILED), part("w-1", task=RENEW)) == [("renew", "w-1")]


def test_new_ones_come_first():
    new, old = part("w-2", Phase.STOPPED, COME, Want.DOWN), part("w-0", task=RENEW)
    assert moves(new, old) == [("start", "w-2")]


def test_what_leaves_goes_last_dependants_first():
    db, app = part("db-0", task=LEAVE), part("app-0", task=LEAVE)
    app = replace(app, needs=(Need(db.replica),))
    assert moves(db, app, part("w-0", task=RENEW)) == [("renew", "w-0")]
    assert moves(db, app) == [("stop", "app-0")]
    gone = replace(app, state=replace(app.state, phase=Phase.STOPPED, want=Want.DOWN), told=True)
    assert moves(db, gone) == [("remove", "app-0"), ("stop", "db-0")]


def test_who_sits_on_a_gpu_that_is_needed_makes_way():
    new = part("v-0", Phase.STOPPED, COME, Want.DOWN, wants={"g"})
    assert moves(new, part("w-0", task=LEAVE, holds={"g"})) == [("stop", "w-0")]
    assert moves(new, part("w-0", task=RENEW, holds={"g"}, wants={"h"})) == [("renew", "w-0")]
    assert moves(new, part("w-0", Phase.STOPPING, RENEWING, holds={"g"})) == []


def test_two_that_swap_their_gpus_stop_both_before_either_starts():
    a = part("w-0", task=RENEW, holds={"g"}, wants={"h"})
    b = part("w-1", task=RENEW, holds={"h"}, wants={"g"})
    assert moves(a, b) == [("park", "w-0")]
    parked = part("w-0", Phase.STOPPED, RENEWING, Want.DOWN, holds={"h"}, wants={"h"}, parked=True)
    assert moves(parked, b) == [("renew", "w-1")]
    assert moves(parked, part("w-1", Phase.STOPPED, RENEWING, parked=True, wants={"g"})) == [
        ("start", "w-0"), ("start", "w-1"),
    ]  # fmt: skip


def test_a_role_waits_for_those_it_depends_on():
    app = part("app-0", task=RENEW, after={"db"})
    assert moves(app, part("db-0", task=RENEW)) == [("renew", "db-0")]
    assert moves(app, part("db-0", Phase.STARTING, fresh=True)) == []
    assert moves(app, part("db-0", fresh=True)) == [("renew", "app-0")]


def test_a_spare_one_leaves_when_its_role_is_whole():
    spare = part("w-1", spare=True, fresh=True)
    assert moves(spare, part("w-0", task=RENEW)) == [("renew", "w-0")]
    assert moves(spare, part("w-0", Phase.STARTING, fresh=True)) == []
    assert moves(spare, part("w-0", fresh=True)) == [("retire", "w-1")]


def test_a_failure_with_a_new_configuration_halts_the_rest():
    failed = part("w-0", Phase.FAILED, fresh=True)
    assert failure([failed, part("w-1", task=RENEW)]) is failed
    assert failure([part("w-0", Phase.FAILED), part("w-1", fresh=True)]) is None
    assert moves(failed, part("w-1", task=RENEW), halted=True) == []


def test_a_halt_ends_a_spare_one_only_if_it_is_not_needed():
    spare = part("w-1", Phase.FAILED, fresh=True, spare=True)
    assert moves(spare, part("w-0", task=RENEW), halted=True) == [("retire", "w-1")]
    spare = part("w-1", fresh=True, spare=True)
    assert moves(spare, part("w-0", Phase.FAILED, fresh=True), halted=True) == []


# ---- whatever the order of things: it ends, and no GPU is taken twice ----------------


def after(do, one):
    """One replica after a move, when all that it takes has happened."""
    at_rest = replace(one.state, phase=Phase.STOPPED, want=Want.DOWN)
    ready = replace(one.state, phase=Phase.READY, want=Want.UP)
    match do:
        case "start" | "renew":
            return replace(
                one, state=ready, task=Task.NONE, fresh=True, holds=one.wants, parked=False
            )
        case "park":
            return replace(one, state=at_rest, task=RENEWING, parked=True, holds=one.wants)
        case "stop" | "retire":
            return replace(one, state=at_rest, task=LEAVE, told=True)
        case "swap":
            return replace(one, task=Task.NONE)
        case "remove":
            return None


phases = st.sampled_from([Phase.READY, Phase.READY, Phase.FAILED, Phase.STOPPED])


@st.composite
def fleets(draw):
    old = draw(st.lists(phases, min_size=1, max_size=4))
    count = draw(st.integers(0, 5))
    gpus = draw(st.permutations(range(5)))
    parts = []
    for n in range(max(len(old), count)):
        wants = {f"g{gpus[n]}"} if n < count else ()
        if n >= len(old):
            parts.append(part(f"w-{n}", Phase.STOPPED, COME, Want.DOWN, wants=wants))
            continue
        want = Want.DOWN if old[n] is Phase.STOPPED else Want.UP
        task = LEAVE if n >= count else RENEW
        parts.append(part(f"w-{n}", old[n], task, want, holds={f"g{n}"}, wants=wants))
    return parts


@settings(max_examples=300, deadline=None)
@given(parts=fleets())
def test_every_change_comes_to_an_end_and_no_gpu_is_taken_twice(parts):
    for _ in range(30):
        decision = decide(parts, halted=False)
        if decision.over:
            break
        assert decision.moves, parts
        for move in decision.moves:
            one = next(each for each in parts if each.replica == move.replica)
            new = after(move.do, one)
            parts = [new if each is one else each for each in parts]
            parts = [each for each in parts if each is not None]
        held = [gpu for each in parts if not each.at_end for gpu in each.holds]
        assert len(held) == len(set(held)), parts
    else:
        raise AssertionError(f"no end: {parts}")
    assert all(each.task is Task.NONE for each in parts)
