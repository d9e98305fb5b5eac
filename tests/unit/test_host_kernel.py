"""What a shim notes of the kernel's counters, on a made-up /proc and cgroup."""

import subprocess
import sys

from orchestrator.host import kernel


def machine(root, *, kills: int, own: int | None = None, limits: dict[str, str] | None = None):
    """A /proc and a cgroup tree with these counts; our cgroup is /a/b."""
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (cgroups / "a" / "b").mkdir(parents=True, exist_ok=True)
    (proc / "self" / "cgroup").write_text("4:memory:/old\n0::/a/b\n")
    (proc / "vmstat").write_text(f"nr_free_pages 7\noom_kill {kills}\nnuma_hit 3\n")
    if own is not None:
        events = f"low 0\nhigh 0\nmax 9\noom 2\noom_kill {own}\noom_group_kill 0\n"
        (cgroups / "a" / "b" / "memory.events").write_text(events)
    for name, limit in (limits or {}).items():
        (cgroups / name / "memory.max").write_text(limit + "\n")
    return {"proc": str(proc), "cgroups": str(cgroups)}


def test_a_rise_in_our_own_cgroup_is_told_from_one_elsewhere(tmp_path):
    before = kernel.Counts(**machine(tmp_path, kills=5, own=1))
    after = kernel.Counts(**machine(tmp_path, kills=7, own=2))
    assert kernel.risen(before, after) == (1, True)
    assert kernel.risen(before, kernel.Counts(**machine(tmp_path, kills=7, own=1))) == (2, False)
    assert kernel.risen(before, before) == (0, False)


def test_without_a_unified_cgroup_the_machine_counts(tmp_path):
    before = kernel.Counts(**machine(tmp_path, kills=5))
    assert (before.cgroup, before.machine) == (None, 5)
    assert kernel.risen(before, kernel.Counts(**machine(tmp_path, kills=6))) == (1, False)


def test_what_can_not_be_read_is_unknown(tmp_path):
    nothing = kernel.Counts(proc=str(tmp_path), cgroups=str(tmp_path))
    assert kernel.risen(nothing, nothing) == (None, False)
    assert kernel.memory_limit(proc=str(tmp_path), cgroups=str(tmp_path)) == 0


def test_the_smallest_limit_on_the_way_up_counts(tmp_path):
    limits = {"a/b": "max", "a": str(8 << 30)}
    where = machine(tmp_path, kills=0, own=0, limits=limits)
    assert kernel.memory_limit(**where) == 8 << 30


LARGEST = """
import os
from orchestrator.host import kernel
notes = kernel.Notes()
notes.begin()
child = os.fork()
if child == 0:
    len(b"x" * (32 << 20))
    os._exit(3)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
assert notes.wait() == (child, 3 << 8)
notes.main_gone()
record = notes.record()
assert record["rss_peak_bytes"] > 8 << 20, record
assert record["shm_bytes"] >= record["shm_free_bytes"] >= 0, record
"""


def test_the_largest_of_the_dead_is_noted():
    # In a process without other children: it waits for any, as a shim does.
    subprocess.run([sys.executable, "-c", LARGEST], check=True)
