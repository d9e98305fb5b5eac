"""GPUs to workers: packed, all or nothing, and every refusal says what is missing."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.connected import closest
from orchestrator.core.declared import declared
from orchestrator.core.gpu_table import Holding
from orchestrator.core.inventory import GIB, Gpu, Inventory, Link
from orchestrator.core.placement import Placements, place, resolve_engine
from orchestrator.topology.load import parse
from orchestrator.wire.ids import ReplicaId

HEAD = 'name = "t"\nmodel = "m"\n'
EIGHT = declared("8xH100")


def found(text, inventory=EIGHT, engine="auto", **more):
    found = place(parse(HEAD + text, "t.toml", {}), inventory, engine, **more)
    assert isinstance(found, Placements), found
    return found


def placed(text, inventory=EIGHT, engine="auto", **more):
    return {
        f"{each.replica.role}-{each.replica.replica}.{each.member}": [g.index for g in each.gpus]
        for each in found(text, inventory, engine, **more).placed
    }


def refused(text, inventory=EIGHT, engine="auto", **more):
    found = place(parse(HEAD + text, "t.toml", {}), inventory, engine, **more)
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
    rest = "t/b-0.0 has 0, 1, 2, 3; GPUs found: 0 (L4), 1 (L4), 2 (L4), 3 (L4)"
    assert found == [
        "a: GPU 9 isn't there; GPUs found: 0 (L4), 1 (L4), 2 (L4), 3 (L4)",
        f"b: t/b-1.0 needs 4 GPUs, 0 of 4 left: {rest}",
        f"c: no GPU has 0.5 of itself left: {rest}",
    ]


def test_the_same_gpu_by_index_and_by_uuid():
    text = "[roles.a]\ngpus = [0]\n[roles.b]\ngpus = ['GPU-declared-0']\n"
    assert refused(text) == ["b: GPU GPU-declared-0 is already t/a-0.0's"]


def test_vllm_without_a_gpu():
    (found,) = refused("[roles.w]\n", Inventory(), "vllm")
    assert found.startswith("w: t/w-0.0 needs 1 GPU and this machine has none; use --engine sim")


class TestConnected:
    """Who works together is near each other."""

    def test_a_gang_stays_at_one_node(self):
        text = "[roles.a]\n[roles.b]\ndata-parallel = 4\ngpus = 1\n[roles.c]\ngpus = 2\n"
        assert placed(text) == {
            "a-0.0": [0], "b-0.0": [4], "b-0.1": [5], "b-0.2": [6], "b-0.3": [7], "c-0.0": [1, 2],
        }  # fmt: skip

    def test_ranks_of_a_gang_have_their_own_neighbours(self):
        text = "[roles.a]\ngpus = [1]\n[roles.b]\ndata-parallel = 2\ngpus = 2\n"
        inventory = declared("2xL4:numa=0,2xL4:numa=1,1xL4:numa=0")
        assert placed(text, inventory) == {"a-0.0": [1], "b-0.0": [0, 4], "b-0.1": [2, 3]}

    def test_nvlink_is_worth_more_than_a_lower_index(self):
        inventory = declared("4xL4")
        pair = Link(a="GPU-declared-1", b="GPU-declared-3", by="nvlink", lanes=4)
        inventory = msgspec.structs.replace(inventory, links=(pair,))
        assert placed("[roles.a]\ngpus = 2\n", inventory) == {"a-0.0": [1, 3]}

    def test_the_worst_pair_decides(self):
        gpus = declared("4xL4").gpus
        near = {a.uuid: {b.uuid: 10 for b in gpus if a != b} for a in gpus}
        for one, other, how in ((0, 1, 100), (1, 2, 20), (1, 3, 20), (2, 3, 20)):
            near[gpus[one].uuid][gpus[other].uuid] = how
            near[gpus[other].uuid][gpus[one].uuid] = how
        assert [gpu.index for gpu in closest(gpus, 3, near, {})] == [1, 2, 3]

    def test_many_gpus_are_grown_from_one(self):
        gpus = declared("32xL4:numa=0,8xL4:numa=1").gpus
        near = declared("32xL4:numa=0,8xL4:numa=1").closeness()
        cost = dict.fromkeys((gpu.uuid for gpu in gpus[:25]), 1)
        assert [gpu.index for gpu in closest(gpus, 8, near, cost)] == list(range(32, 40))
        assert len(closest(gpus, 40, near, cost)) == 40

    def test_an_instance_of_mig_works_alone(self):
        parts = tuple(
            Gpu(index=0, uuid=f"MIG-{n}", name="1g", total_bytes=10 * GIB) for n in range(3)
        )
        inventory = Inventory(gpus=parts)
        assert placed("[roles.a]\nreplicas = 3\n", inventory)["a-2.0"] == [0]
        (why,) = refused("[roles.a]\ndata-parallel = 2\n", inventory)
        assert "t/a-0 needs 2 GPUs, 0 of 3 left (an instance of MIG works alone); GPUs" in why


class TestOthers:
    """What isn't ours to take."""

    def test_another_topologys_gpus_are_its_own(self):
        others = [Holding(who="o/w-0.0", uuid="GPU-declared-0")]
        assert placed("[roles.a]\n", others=others) == {"a-0.0": [1]}
        (why,) = refused("[roles.a]\ngpus = [0]\n", others=others)
        assert why == "a: GPU 0 is already o/w-0.0's"
        (why,) = refused("[roles.a]\ngpus = 0.5\n", declared("1xL4"), others=others)
        assert why == "a: no GPU has 0.5 of itself left: o/w-0.0 has 0; GPUs found: 0 (L4)"

    def test_parts_of_topologies_add_up(self):
        others = [Holding(who="o/w-0.0", uuid="GPU-declared-1", share=0.5)]
        assert placed("[roles.a]\ngpus = 0.5\n", others=others) == {"a-0.0": [1]}
        assert placed("[roles.a]\ngpus = 0.6\n", others=others) == {"a-0.0": [0]}
        (why,) = refused("[roles.a]\ngpus = [1]\n", others=others)
        assert why == "a: GPU 1 is shared by o/w-0.0 already"
        (why,) = refused("[roles.a]\ngpus = 0.6\n", declared("1xL4,1xL4"), others=[
            *others, Holding(who="o/x-0.0", uuid="GPU-declared-0", share=0.75),
        ])  # fmt: skip
        assert "left: o/w-0.0 has 0.5 of 1; o/x-0.0 has 0.75 of 0; GPUs found" in why

    def test_a_strangers_gpu_is_taken_last_and_it_is_said(self):
        gpus = declared("2xL4").gpus
        held = msgspec.structs.replace(gpus[0], held="40.0 GiB of it held by pid 7 (x), not ours")
        inventory = Inventory(gpus=(held, gpus[1]))
        assert placed("[roles.a]\n", inventory) == {"a-0.0": [1]}
        assert placed("[roles.a]\ngpus = 0.5\n", inventory) == {"a-0.0": [1]}
        assert found("[roles.a]\n", inventory).notes == ()
        (note,) = found("[roles.a]\nreplicas = 2\n", inventory).notes
        assert note == (
            "t/a-1.0: GPU 0 has 40.0 GiB of it held by pid 7 (x), not ours; "
            "it starts there when enough of it is free"
        )
        has = {"t/a-0.0": (held.uuid,)}
        assert placed("[roles.a]\n", inventory, has=has) == {"a-0.0": [0]}
        assert found("[roles.a]\n", inventory, has=has).notes == (), "it is ours"

    def test_ranks_of_a_gang_are_never_together_on_a_gpu(self):
        text = "[roles.a]\ndata-parallel = 2\ngpus = 0.5\n"
        assert placed(text) == {"a-0.0": [0], "a-0.1": [1]}
        (why,) = refused(text, declared("1xL4"))
        assert why.startswith("a: the ranks of t/a-0 need 2 GPUs with 0.5 left; GPUs found")

    def test_a_gang_keeps_its_gpus_or_moves_as_a_whole(self):
        text = "[roles.a]\ndata-parallel = 2\ngpus = 1\n"
        uuids = [gpu.uuid for gpu in EIGHT.gpus]
        both = {"t/a-0.0": (uuids[5],), "t/a-0.1": (uuids[2],)}
        assert placed(text, has=both) == {"a-0.0": [5], "a-0.1": [2]}
        assert placed(text, has={"t/a-0.0": (uuids[5],)}) == {"a-0.0": [0], "a-0.1": [1]}

    def test_a_cache_in_bytes_must_fit(self):
        text = "[roles.a]\ngpus = 0.5\nvllm = { kv-cache-memory-bytes = 40_000_000_000 }\n"
        assert refused(text) == [
            "a: t/a-0.0 wants 37.3 GiB of KV cache, and it has 36.8 GiB of GPU 0 (H100)"
        ]
        assert placed(text.replace("40_", "39_"))
        assert placed(text, engine="sim")


PARTS = [0, 1, 2, 4, 0.5, 0.25]


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([1, 1, 2]), st.sampled_from(PARTS)),
        min_size=1, max_size=5,
    ),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.5, 1.0])), max_size=3, unique_by=lambda
             pair: pair[0]),
    st.sets(st.integers(0, 7), max_size=2),
)  # fmt: skip
def test_never_oversold_and_never_by_halves(roles, count, taken, strange):
    text = "".join(
        f"[roles.r{i}]\nreplicas = {n}\ndata-parallel = {ranks}\ngpus = {gpus}\n"
        for i, (n, ranks, gpus) in enumerate(roles)
    )
    topology = parse(HEAD + text, "t.toml", {})
    machine = declared(f"{count}xL4")
    gpus = tuple(
        msgspec.structs.replace(gpu, held="x" if gpu.index in strange else "")
        for gpu in machine.gpus
    )
    machine = msgspec.structs.replace(machine, gpus=gpus)
    others = [
        Holding(who="o/w-0.0", uuid=f"GPU-declared-{index}", share=share) for index, share in taken
    ]
    found = place(topology, machine, others=others)
    assert found == place(topology, machine, others=others)
    if isinstance(found, list):
        assert sum(n * ranks * gpus for n, ranks, gpus in roles) > 0
        return
    shares = dict.fromkeys(range(count), 0.0) | dict(taken)
    gangs: dict[ReplicaId, list[int]] = {}
    for each in found.placed:
        wanted = topology.roles[each.replica.role].gpus
        assert len(each.gpus) == (1 if isinstance(wanted, float) else wanted)
        assert found.of(each.replica, each.member) == each
        gangs.setdefault(each.replica, []).extend(gpu.index for gpu in each.gpus)
        for gpu in each.gpus:
            shares[gpu.index] += each.share
    assert all(share <= 1 for share in shares.values())
    assert all(len(gang) == len(set(gang)) for gang in gangs.values())
    again = place(topology, machine, others=others, has={
        each.who: tuple(gpu.uuid for gpu in each.gpus) for each in found.placed
    })  # fmt: skip
    assert [each.gpus for each in again.placed] == [each.gpus for each in found.placed]
