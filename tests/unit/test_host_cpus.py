"""NUMA nodes and cores, from a /sys of the test's own."""

import os

import pytest

from orchestrator.host import cpus

GIB = 2**30


@pytest.fixture
def sys_tree(tmp_path):
    """Two nodes of two cores, each with two siblings that lie four numbers apart."""

    def write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write(tmp_path / "node/online", "0-1\n")
    for node in range(2):
        write(tmp_path / f"node/node{node}/cpulist", f"{2 * node}-{2 * node + 1},{2 * node + 4}-"
              f"{2 * node + 5}\n")  # fmt: skip
        write(tmp_path / f"node/node{node}/meminfo", f"Node {node} MemTotal:  {64 << 20} kB\n")
    for cpu in range(8):
        siblings = f"{cpu % 4},{cpu % 4 + 4}\n"
        write(tmp_path / f"cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    return str(tmp_path)


def test_cores_are_put_together_by_node(sys_tree):
    assert cpus.nodes(sys_tree, range(8)) == [
        cpus.Node(0, ((0, 4), (1, 5)), 64 * GIB),
        cpus.Node(1, ((2, 6), (3, 7)), 64 * GIB),
    ]


def test_what_we_may_not_use_is_not_there_but_the_node_keeps_its_number(sys_tree):
    assert cpus.nodes(sys_tree, {3, 6}) == [
        cpus.Node(0, (), 64 * GIB),
        cpus.Node(1, ((6,), (3,)), 64 * GIB),
    ]


def test_a_machine_that_says_nothing_has_one_node(tmp_path):
    (node,) = cpus.nodes(str(tmp_path), {0, 1})
    assert (node.index, node.cores) == (0, ((0,), (1,)))
    assert node.total_bytes > 0


def test_this_machine():
    found = cpus.machine()
    every = {cpu for node in found for core in node.cores for cpu in core}
    assert every == os.sched_getaffinity(0)
    assert sum(node.total_bytes for node in found) > 0


def test_a_control_group_that_allows_less_is_what_there_is(monkeypatch, sys_tree):
    monkeypatch.setattr(cpus, "nodes", lambda: [cpus.Node(0, ((0,),), 30), cpus.Node(1, (), 10)])
    monkeypatch.setattr(cpus, "memory_limit", lambda: 20)
    assert [node.total_bytes for node in cpus.machine()] == [15, 5]
    monkeypatch.setattr(cpus, "memory_limit", lambda: 0)
    assert [node.total_bytes for node in cpus.machine()] == [30, 10]


@pytest.mark.parametrize(
    ("text", "expected"), [("0-3,8", [0, 1, 2, 3, 8]), ("", []), ("5", [5]), ("x,1-", [1])]
)
def test_cpu_lists(text, expected):
    assert cpus.cpu_list(text) == expected
