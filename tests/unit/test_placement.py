"""GPUs to workers: packed, all or nothing, and every refusal says what is missing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.declared import declared
from orchestrator.core.inventory import Inventory
from orchestrator.core.placement import Placements, place, resolve_engine
from orchestrator.topology.load import parse
from orchestrator.wire.ids import ReplicaId

HEAD = 'name = "t"\nmodel = "m"\n'
EIGHT = declared("8xH100")


def placed(text, inventory=EIGHT, engine="auto"):
    found = place(parse(HEAD + text, "t.toml", {}), inventory, engine)
    assert isinstance(found, Placements), found
    return {
        f"{each.replica.role}-{each.replica.replica}.{each.member}": [g.index for g in each.gpus]
        for each in found.placed
    }


def refused(text, inventory=EIGHT, engine="auto"):
    found = place(parse(HEAD + text, "t.toml", {}), inventory, engine)
    assert isinstance(found, list), found
    return [str(each) for each in found]


class TestEngine:
    @pytest.mark.parametrize(
        ("choice", "override", "gpus", "expected"),
        [
            ("auto", "auto", True, "vllm"),
            ("auto", "auto", False, "sim"),
            ("vllm", "auto", False, "vllm"),
            ("sim", "auto", True, "sim"),
            ("vllm", "sim", True, "sim"),
            ("sim", "vllm", False, "vllm"),
        ],
    )
    def test_who_decides(self, choice, override, gpus, expected):
        engine = resolve_engine(choice, override, EIGHT if gpus else Inventory())
        assert engine.name == expected
        assert engine.reason

    def test_sim_and_cpu_need_no_gpus(self):
        text = "[roles.w]\ngpus = 4\nreplicas = 2\n"
        none = {"w-0.0": [], "w-1.0": []}
        assert placed(text, Inventory()) == none
        assert placed(text, EIGHT, "sim") == none
        assert placed(text, Inventory(cpu_engine=True), "vllm") == none


def test_counts_are_packed_in_order():
    text = "[roles.a]\nreplicas = 2\ntensor-parallel = 2\n[roles.b]\ndata-parallel = 2\ngpus = 1\n"
    assert placed(text) == {
        "a-0.0": [0, 1], "a-1.0": [2, 3], "b-0.0": [4], "b-0.1": [5],
    }  # fmt: skip


def test_lists_are_honoured_and_dealt_and_the_rest_packs_around_them():
    text = "[roles.a]\nreplicas = 2\n[roles.b]\nreplicas = 2\ngpus = [3, 0, 'GPU-declared-1', 2]\n"
    assert placed(text) == {"a-0.0": [4], "a-1.0": [5], "b-0.0": [3, 0], "b-1.0": [1, 2]}


def test_a_machine_without_its_first_gpu():
    assert placed("[roles.w]\ngpus = [1, 2]\n") == {"w-0.0": [1, 2]}


def test_fractions_share_what_nobody_has_whole():
    text = "[roles.a]\nreplicas = 3\ngpus = 0.5\n[roles.b]\n"
    assert placed(text, declared("3xL4")) == {
        "a-0.0": [1], "a-1.0": [1], "a-2.0": [2], "b-0.0": [0],
    }  # fmt: skip


def test_thirds_make_one():
    text = (
        "[roles.a]\nreplicas = 3\ngpus = 0.3333333333333333\n[roles.b]\nreplicas = 10\ngpus=0.1\n"
    )
    assert set(placed(text, declared("2xL4"))) >= {"a-2.0", "b-9.0"}


def test_processes_get_gpus_too():
    text = "[roles.w]\n[processes.p]\ncommand = ['x']\ngpus = 1\n[processes.q]\ncommand = ['x']\n"
    assert placed(text) == {"w-0.0": [0], "p-0.0": [1], "q-0.0": []}


def test_refusals_name_what_is_missing():
    text = (
        "[roles.a]\ngpus = [9]\n[roles.b]\nreplicas = 2\ntensor-parallel = 4\n[roles.c]\ngpus=0.5\n"
    )
    found = refused(text, declared("4xL4"))
    assert found == [
        "a: GPU 9 isn't there; GPUs found: 0 (L4), 1 (L4), 2 (L4), 3 (L4)",
        "b: t/b-1.0 needs 4 GPUs, 0 of 4 left; GPUs found: 0 (L4), 1 (L4), 2 (L4), 3 (L4)",
        "c: no GPU has 0.5 of itself left; GPUs found: 0 (L4), 1 (L4), 2 (L4), 3 (L4)",
    ]


def test_the_same_gpu_by_index_and_by_uuid():
    text = "[roles.a]\ngpus = [0]\n[roles.b]\ngpus = ['GPU-declared-0']\n"
    assert refused(text) == ["b: GPU GPU-declared-0 is already t/a-0.0's"]


def test_vllm_without_a_gpu():
    (found,) = refused("[roles.w]\n", Inventory(), "vllm")
    assert found.startswith("w: t/w-0.0 needs 1 GPU and this machine has none; use --engine sim")


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 2, 4, 0.5, 0.25])),
        min_size=1, max_size=5,
    ),
    st.integers(1, 8),
)  # fmt: skip
def test_never_oversold_and_never_by_halves(roles, count):
    text = "".join(
        f"[roles.r{i}]\nreplicas = {n}\ngpus = {gpus}\n" for i, (n, gpus) in enumerate(roles)
    )
    topology = parse(HEAD + text, "t.toml", {})
    inventory = declared(f"{count}xL4")
    found = place(topology, inventory)
    assert found == place(topology, inventory)
    if isinstance(found, list):
        assert sum(n * gpus for n, gpus in roles) > 0
        return
    shares = dict.fromkeys(range(count), 0.0)
    for each in found.placed:
        wanted = topology.roles[each.replica.role].gpus
        assert len(each.gpus) == (1 if isinstance(wanted, float) else wanted)
        assert found.of(ReplicaId("t", each.replica.role, each.replica.replica), 0) == each
        for gpu in each.gpus:
            shares[gpu.index] += each.share
    assert all(share <= 1 for share in shares.values())
