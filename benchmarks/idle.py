"""What an idle daemon costs: wake-ups, CPU and memory with N sleepers, and how fast `status` is.

    python benchmarks/idle.py [--sleepers 50] [--seconds 20]

Wake-ups are voluntary context switches of all threads of the daemon, counted by the kernel over a
window in which nobody asks it anything. A wake-up of its own would be one without a cause outside.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "orchestrator.cli.main"]


def switches(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def cpu_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def watch(pid: int, seconds: float) -> None:
    """Wait, and notice if the daemon ends meanwhile."""
    poll = select.poll()
    pidfd = os.pidfd_open(pid)
    poll.register(pidfd, select.POLLIN)
    assert not poll.poll(seconds * 1000), "the daemon ended"
    os.close(pidfd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sleepers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dyn-") as root:
        env = dict(os.environ, DYNORCH_RUN_DIR=f"{root}/run", DYNORCH_STATE_DIR=f"{root}/state")
        file = Path(root, "sleepers.toml")
        file.write_text('name = "idle"\n' + "".join(
            f'[processes.s{n}]\ncommand = ["sleep", "100000"]\n' for n in range(args.sleepers)
        ))  # fmt: skip

        def run(*verb: str) -> str:
            return subprocess.run(
                [*COMMAND, *verb], env=env, check=True, capture_output=True, text=True
            ).stdout

        begun = time.monotonic()
        run("up", "-d", str(file))
        started_s = time.monotonic() - begun
        try:
            status = json.loads(run("status", "--json"))
            pid = status["daemon"]["pid"]
            watch(pid, 2.0)  # the last answer has left
            before, cpu = switches(pid), cpu_s(pid)
            watch(pid, args.seconds)
            woke, used = switches(pid) - before, cpu_s(pid) - cpu
            times = []
            for _ in range(7):
                begun = time.monotonic()
                run("status")
                times.append(time.monotonic() - begun)
            workers = [
                worker["pid"]
                for process in status["topologies"][0]["processes"]
                for replica in process["replicas"]
                for worker in replica["workers"]
            ]
            shims = [int(Path(f"/proc/{w}/stat").read_text().split()[3]) for w in workers]
            print(f"sleepers             {args.sleepers}")
            print(f"up to all ready      {started_s:.2f} s")
            print(f"wake-ups in {args.seconds:.0f} s     {woke}")
            print(f"CPU in {args.seconds:.0f} s          {used * 1000:.1f} ms")
            print(f"daemon PSS           {pss_kib(pid) / 1024:.1f} MiB")
            print(f"shim PSS, mean       {sum(map(pss_kib, shims)) / len(shims):.0f} KiB")
            print(f"status, median       {sorted(times)[3] * 1000:.0f} ms")
        finally:
            begun = time.monotonic()
            run("down")
            print(f"down, verified       {time.monotonic() - begun:.2f} s")


if __name__ == "__main__":
    main()
