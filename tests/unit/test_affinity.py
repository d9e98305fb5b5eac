"""Which cores a worker keeps to."""

import pytest

from orchestrator.core.affinity import Binding, cpus_of, ranges
from orchestrator.core.declared import declared
from orchestrator.core.inventory import GIB, Inventory, Node
from orchestrator.core.placement import Holding, place
from orchestrator.topology.load import parse

HEAD = 'name = "t"\nmodel = "m"\n'
PAIR = (
    '[kv-transfer]\nconnector = "nixl"\n[roles.p]\nkind = "prefill"\n[roles.d]\nkind = "decode"\n'
)


def machine(*cores: int, siblings: int = 1, gib: int = 100) -> Inventory:
    """A machine without GPUs, its vLLM for the CPU; so many cores at each node."""
    nodes, first = [], 0
    for index, count in enumerate(cores):
        found = tuple(
            tuple(first + core + sibling * sum(cores) for sibling in range(siblings))
            for core in range(count)
        )
        nodes.append(Node(index=index, cores=found, total_bytes=gib * GIB))
        first += count
    return Inventory(nodes=tuple(nodes), cpu_engine=True)


def bound(text, inventory, **more) -> dict[str, Binding]:
    found = place(parse(HEAD + text, "t.toml", {}), inventory, "vllm", **more)
    assert not isinstance(found, list), found
    return {each.who.removeprefix("t/"): each.binding for each in found.placed}


def threads(text, inventory, **more) -> dict[str, str]:
    found = bound(text, inventory, **more)
    return {who: each.env["VLLM_CPU_OMP_THREADS_BIND"] for who, each in found.items()}


class TestGpus:
    def test_a_worker_keeps_to_the_node_of_its_gpus(self):
        found = bound("[roles.a]\nreplicas = 2\ngpus = 4\n", declared("8xH100"))
        assert found["a-0.0"] == Binding(cpus=tuple(range(32)), numa=0)
        assert found["a-1.0"] == Binding(cpus=tuple(range(32, 64)), numa=1)

    def test_commands_too(self):
        found = bound("[processes.p]\ncommand = ['x']\ngpus = [7]\n", declared("8xH100"))
        assert found["p-0.0"].numa == 1

    @pytest.mark.parametrize(
        ("text", "gpus"),
        [
            ("[roles.a]\ngpus = 8\n", "8xH100"),
            ("[roles.a]\ngpus = 1\naffinity = 'none'\n", "8xH100"),
            ("[roles.a]\ngpus = 1\n", "2xH100"),
            ("[roles.a]\ngpus = 0\n", "8xH100"),
        ],
        ids=["both nodes", "not wanted", "one node", "no GPU"],
    )
    def test_who_is_not_bound(self, text, gpus):
        assert set(map(repr, bound(text, declared(gpus)).values())) == {repr(Binding())}


class TestCpuEngines:
    def test_one_has_all_of_a_node_but_leaves_a_core_to_the_rest_of_it(self):
        (found,) = bound("[roles.a]\n", machine(8, siblings=2)).values()
        assert found.cpus == tuple(range(16))
        assert found.numa == 0
        assert found.env == {"VLLM_CPU_OMP_THREADS_BIND": "8-14", "VLLM_CPU_KVCACHE_SPACE": "40"}

    def test_several_are_dealt_to_the_nodes_and_each_nodes_cores_to_them(self):
        found = bound("[roles.a]\nreplicas = 3\n", machine(8, 8))
        assert [each.numa for each in found.values()] == [0, 1, 0]
        assert [ranges(each.cpus) for each in found.values()] == ["0-3", "8-15", "4-7"]
        assert [each.env["VLLM_CPU_KVCACHE_SPACE"] for each in found.values()] == ["20", "40", "20"]

    def test_each_tensor_parallel_rank_has_its_cores(self):
        text = "[roles.a]\ntensor-parallel = 2\n"
        assert threads(text, machine(8)) == {"a-0.0": "0-2|4-6"}
        assert threads(text, machine(4, 4)) == {"a-0.0": "0-2|4-6"}
        assert bound(text, machine(4, 4))["a-0.0"].numa is None

    def test_a_transfer_takes_a_core_of_its_own(self):
        assert threads(PAIR, machine(8)) == {"p-0.0": "0-1", "d-0.0": "4-5"}

    def test_one_core_is_for_the_threads_and_the_rest_goes_where_there_is_room(self):
        found = bound(PAIR, machine(2))
        assert [each.env["VLLM_CPU_OMP_THREADS_BIND"] for each in found.values()] == ["0", "1"]
        assert [each.cpus for each in found.values()] == [(0, 1), (0, 1)]

    def test_with_fewer_cores_than_engines_they_share_and_it_is_said(self):
        text = "[roles.a]\nreplicas = 3\n"
        assert set(threads(text, machine(2)).values()) == {"nobind"}
        found = place(parse(HEAD + text, "t.toml", {}), machine(2), "vllm")
        assert found.notes[0] == (
            "t/a-0.0: fewer free cores than engines, so it shares them with others"
        )
        assert len(found.notes) == 3

    def test_cores_of_another_topology_are_its_own_as_long_as_there_are_others(self):
        busy = [Holding(who="o/w-0.0", cpus=(0, 1, 2))]
        assert threads("[roles.a]\n", machine(6), others=busy) == {"a-0.0": "3-4"}
        busy = [Holding(who="o/w-0.0", cpus=tuple(range(6)))]
        assert threads("[roles.a]\n", machine(6), others=busy) == {"a-0.0": "nobind"}

    @pytest.mark.parametrize(
        ("more", "left"),
        [
            ("env = { VLLM_CPU_OMP_THREADS_BIND = 'auto' }", {"VLLM_CPU_KVCACHE_SPACE"}),
            ("env = { VLLM_CPU_KVCACHE_SPACE = '1' }", {"VLLM_CPU_OMP_THREADS_BIND"}),
            ("vllm = { kv-cache-memory-bytes = 1 }", {"VLLM_CPU_OMP_THREADS_BIND"}),
            ("vllm = { gpu-memory-utilization = 0.3 }", {"VLLM_CPU_OMP_THREADS_BIND"}),
            ("affinity = 'none'", set()),
        ],
    )
    def test_what_is_written_is_never_touched(self, more, left):
        assert set(bound(f"[roles.a]\n{more}\n", machine(4))["a-0.0"].env) == left

    def test_little_memory_is_still_some(self):
        assert bound("[roles.a]\n", machine(4, gib=1))["a-0.0"].env["VLLM_CPU_KVCACHE_SPACE"] == "1"

    def test_the_simulated_engine_computes_nothing(self):
        text = "[roles.a]\nengine = 'sim'\n"
        found = place(parse(HEAD + text, "t.toml", {}), machine(4), "auto")
        assert [each.binding for each in found.placed] == [Binding()]
        assert bound("[roles.a]\n", Inventory(cpu_engine=True)) == {"a-0.0": Binding()}


def test_numbers_as_the_kernel_writes_them():
    assert ranges((8, 0, 1, 2, 5)) == "0-2,5,8"
    assert cpus_of({"VLLM_CPU_OMP_THREADS_BIND": "0-2,5|8"}) == (0, 1, 2, 5, 8)
    assert cpus_of({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}) == cpus_of({}) == ()
