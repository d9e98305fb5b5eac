"""A worker runs where it was told to, and says so in its log where it can't."""

import os

import pytest

from tests.e2e.machine import Machine

LOOK = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; head -n 1 /proc/self/numa_maps"]


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


def log_of(machine, **wanted) -> str:
    life = machine.born(argv=LOOK, **wanted)
    life.ended()
    return life.log.read_text()


def test_cores_and_memory(machine):
    cpu = max(os.sched_getaffinity(0))
    said = log_of(machine, cpus=[cpu], numa=0)
    assert f"Cpus_allowed_list:\t{cpu}\n" in said
    assert "prefer" in said or "not bound to" in said, "a container may forbid it"


def test_what_can_not_be_had_is_a_line_of_its_log(machine):
    said = log_of(machine, cpus=[4000], numa=63)
    line = "dynorch: not bound to CPUs [4000] and the memory of NUMA node 63: Invalid argument\n"
    assert said.startswith(line)
    assert "Cpus_allowed_list" in said, "it runs all the same"
