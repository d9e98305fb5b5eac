"""Machines that aren't there: in one line, and in a file."""

import pytest

from orchestrator.core.declared import declared, read
from orchestrator.core.inventory import GIB, Inventory

FILE = """
[[gpus]]
index = 0
uuid = "GPU-a"
name = "X"
total_bytes = 1024
numa = 1
[[gpus]]
index = 1
uuid = "GPU-b"
name = "X"
total_bytes = 1024
[[links]]
a = "GPU-a"
b = "GPU-b"
by = "nvlink"
lanes = 2
[[nodes]]
index = 1
cores = [[0, 4], [1, 5]]
total_bytes = 4096
"""


def test_a_board_is_connected_and_half_of_it_is_at_each_node():
    found = declared("8xH100")
    assert [gpu.index for gpu in found.gpus] == list(range(8))
    assert found.gpus[3].uuid == "GPU-declared-3"
    assert found.gpus[0].total_bytes == 80 * GIB
    assert [gpu.numa for gpu in found.gpus] == [0] * 4 + [1] * 4
    assert len(found.links) == 28
    assert {(link.by, link.lanes) for link in found.links} == {("nvlink", 18)}
    assert [node.cpus[0] for node in found.nodes] == [0, 32]


def test_few_are_at_one_node_and_some_have_no_nvlink():
    found = declared("2xL4")
    assert [gpu.numa for gpu in found.gpus] == [0, 0]
    assert found.links == ()
    assert len(found.nodes) == 1


def test_options_and_mixtures():
    found = declared("1xl40s, 2xFOO-1:12GiB:numa=2, 2xh100:pcie:60GB")
    assert [(gpu.name, gpu.total_bytes, gpu.numa) for gpu in found.gpus] == [
        ("L40S", 48 * GIB, 0), ("FOO-1", 12 * GIB, 2), ("FOO-1", 12 * GIB, 2),
        ("H100", 60 * 10**9, 1), ("H100", 60 * 10**9, 1),
    ]  # fmt: skip
    assert found.links == ()
    assert [node.index for node in found.nodes] == [0, 1, 2]


@pytest.mark.parametrize(
    "text",
    ["", "8", "H100", "8xFOO", "x", "8xH100,", "999xH100", "-1xH100", "1xH100:sli", "1xH100:",
     "1xH100:0GiB", "1xH100:numa=99"],
)  # fmt: skip
def test_nonsense(text):
    with pytest.raises(ValueError, match=r"write|at most"):
        declared(text)


def test_how_near_two_are_where_nobody_says_it():
    near = declared("4xL4,4xL4:numa=1").closeness()
    assert near["GPU-declared-0"]["GPU-declared-1"] == 20
    assert near["GPU-declared-4"]["GPU-declared-0"] == 10
    assert declared("2xH100").closeness() == {
        "GPU-declared-0": {"GPU-declared-1": 118},
        "GPU-declared-1": {"GPU-declared-0": 118},
    }


def test_a_file_says_it_exactly():
    found = read(FILE)
    assert found.nodes[0].cpus == (0, 1, 4, 5)
    assert found.closeness() == {"GPU-a": {"GPU-b": 102}, "GPU-b": {"GPU-a": 102}}
    assert read('{"gpus": []}') == Inventory()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpus = 3", "declares no machine: Expected `array`"),
        ("{", "declares no machine: "),
        ("[[", "declares no machine: "),
        (FILE.replace('uuid = "GPU-b"', 'uuid = "GPU-a"'), "two GPUs have the same UUID"),
        (FILE.replace('b = "GPU-b"', 'b = "GPU-c"'), "a link to GPU-c, which no GPU is called"),
    ],
)
def test_a_file_that_makes_no_sense(text, said):
    with pytest.raises(ValueError, match=said):
        read(text)
