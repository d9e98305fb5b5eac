"""dynorch beside supervisord, circus, runit and s6: the same programs, the same machine, one run.

    python -m benchmarks.supervise [--rivals VENV/bin] [--kills 100] [--many 200 500] [--json FILE]

crash      `kill -9` of a program until the first instruction of its replacement, p50 and p99
start/stop first word of the daemon's command until N programs have begun; the stop command until
           not one of them is left
idle       voluntary context switches and CPU of all supervising processes in 20 s with N sleepers
memory     PSS of the daemon and, mean, of each supervising process per program
log        100 MB of 100-byte lines, one write(2) for 64 KiB of them; lines that are missing
survivors  a program with four kinds of descendant that ignore TERM: alive 5 s after the stop, and
           alive beside the replacement after a `kill -9` of main
copies     of a program after `kill -9` of the daemon and a new start

A program says its first word through a FIFO: `sh` that writes a line and becomes `sleep`.
"""

import argparse
import compileall
import json
import os
import select
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.bars import draw
from benchmarks.idle import cpu_s, pss_kib, switches, watch
from benchmarks.rivals import RIVALS, Rival

ZOO = Path(__file__).parent.parent / "tests" / "zoo.py"
LINES = 1_000_000
LOGGER = f"""
import os
line = b"%099d\\n"
for first in range(0, {LINES}, 650):
    block = b"".join(line % n for n in range(first, min(first + 650, {LINES})))
    while block:
        block = block[os.write(1, block):]
import signal
signal.pause()
"""


class Ear:
    """Hears the first word of each program."""

    def __init__(self, root: Path) -> None:
        self.path = root / "ear"
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.rest = b""

    def program(self, name: str) -> list[str]:
        return ["/bin/sh", "-c", f"echo {name} $$ > {self.path}; exec sleep 100000"]

    def hear(self, count: int, within_s: float = 60.0) -> dict[str, int]:
        """Wait for `count` words; pids by name, the last word of each."""
        heard: dict[str, int] = {}
        number, deadline = 0, time.monotonic() + within_s
        while number < count:
            left = deadline - time.monotonic()
            assert left > 0, f"heard {number} of {count} within {within_s} s"
            if not select.select([self.fd], [], [], left)[0]:
                continue
            *lines, self.rest = (self.rest + os.read(self.fd, 1 << 16)).split(b"\n")
            for line in lines:
                name, pid = line.decode().split()
                heard[name] = int(pid)
                number += 1
        return heard


def rest(seconds: float) -> None:
    """A pause that is part of a measure."""
    select.select([], [], [], seconds)


def until(condition: Callable[[], bool], within_s: float = 60.0) -> float:
    """Wait; the time it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < within_s, "it never came about"
        rest(0.001)
    return time.monotonic() - begun


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def crash(rival: Rival, root: Path, kills: int) -> dict[str, float]:
    ear = Ear(root)
    rival.write({"one": ear.program("one")})
    rival.start()
    times, pid = [], ear.hear(1)["one"]
    for _ in range(kills):
        # Younger than a second counts as a failed start with most of them.
        rest(1.2)
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        pid = ear.hear(1)["one"]
        times.append((time.monotonic() - begun) * 1000)
    times.sort()
    return {"p50_ms": statistics.median(times), "p99_ms": times[int(len(times) * 0.99 - 0.01)]}


def many(rival: Rival, root: Path, count: int, idle_s: float) -> dict[str, float]:
    ear = Ear(root)
    rival.write({f"p{n}": ear.program(f"p{n}") for n in range(count)})
    begun = time.monotonic()
    rival.start()
    pids = ear.hear(count).values()
    found = {"start_s": time.monotonic() - begun}
    rest(3.0)  # younger than a second is "starting" with most of them
    if idle_s:
        supervisors = rival.supervisors()
        rest(1.0)
        before, used = sum(map(switches, supervisors)), sum(map(cpu_s, supervisors))
        watch(supervisors[0], idle_s)
        found["wakeups"] = sum(map(switches, supervisors)) - before
        found["cpu_ms"] = (sum(map(cpu_s, supervisors)) - used) * 1000
        found["daemon_mib"] = pss_kib(supervisors[0]) / 1024
        found["each_kib"] = sum(map(pss_kib, supervisors[1:])) / count
    begun = time.monotonic()
    rival.stop()
    until(lambda: not any(map(alive, pids)))
    found["stop_s"] = time.monotonic() - begun
    return found


def log(rival: Rival, root: Path) -> dict[str, float]:
    (root / "logger.py").write_text(LOGGER)
    rival.write({"log2": [sys.executable, "-I", "-S", str(root / "logger.py")]})

    def size() -> int:
        return sum(path.stat().st_size for path in rival.logs("log2") if path.exists())

    rival.start()
    until(lambda: size() > 0)
    begun = time.monotonic()
    whole, last, still = LINES * 100, -1, time.monotonic()
    while (now := size()) < whole and time.monotonic() - still < 5.0:
        if now != last:
            last, still = now, time.monotonic()
        rest(0.002)
    took = still - begun
    lines = b"".join(path.read_bytes() for path in rival.logs("log2") if path.exists()).split(b"\n")
    return {"mb_s": size() / 1e6 / took, "lost": LINES - len({line[-7:] for line in lines if line})}


def zoo_pids(root: Path) -> list[int]:
    path = root / "pids"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines]


def survivors(rival: Rival, root: Path) -> dict[str, float]:
    rival.write({"zoo": [sys.executable, "-I", "-S", str(ZOO), "polite", str(root)]})
    rival.start()
    until(lambda: len(zoo_pids(root)) >= 5)
    first = zoo_pids(root)
    rest(1.5)
    main = next(int(x.split()[1]) for x in (root / "pids").read_text().splitlines() if "main" in x)
    os.kill(main, signal.SIGKILL)
    until(lambda: len(zoo_pids(root)) >= 10)
    found = {"beside": sum(map(alive, first))}
    rival.stop()
    rest(5.0)
    found["after_stop"] = sum(map(alive, zoo_pids(root)))
    for pid in zoo_pids(root):
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    return found


def copies(rival: Rival, root: Path) -> dict[str, float]:
    ear = Ear(root)
    rival.write({"one": ear.program("one")})
    rival.start()
    pids = [ear.hear(1)["one"]]
    rival.kill_daemon()
    for leftover in root.glob("*.pid"):
        leftover.unlink()
    rival.start()
    rest(4.0)
    while select.select([ear.fd], [], [], 0)[0]:
        pids.append(ear.hear(1)["one"])
    found = {"copies": sum(map(alive, pids))}
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    return found


def measure(kind: type[Rival], tools: Path, what: Callable[..., dict[str, float]], *args: object):
    """One measure of one rival, in a new directory."""
    with tempfile.TemporaryDirectory(prefix="sup-", ignore_cleanup_errors=True) as root:
        rival = kind(Path(root), tools)
        try:
            return what(rival, Path(root), *args)
        finally:
            rival.end()


def rows(args: argparse.Namespace) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for kind in RIVALS:
        if args.only and kind.name not in args.only:
            continue
        if not kind(Path(), args.rivals).there():
            print(f"{kind.name}: not installed, left out", file=sys.stderr)
            continue
        row: dict[str, object] = {}
        measures: list[tuple[Callable[..., dict[str, float]], tuple[object, ...], str]] = [
            (many, (count, 20.0 if count == args.many[0] else 0.0), f"_{count}")
            for count in args.many
        ]
        measures += [(log, (), ""), (survivors, (), ""), (copies, (), "")]
        measures += [(crash, (args.kills,), "")]
        for what, extra, suffix in measures:
            try:
                result = measure(kind, args.rivals, what, *extra)
            except (AssertionError, OSError, psutil.Error) as error:
                result = {f"{what.__name__}_failed": str(error)}
            row |= {key + suffix: value for key, value in result.items()}
            print(kind.name, result, file=sys.stderr, flush=True)
        found[kind.name] = row
    return found


def table(found: dict[str, dict[str, object]]) -> str:
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    lines = [f"| | {' | '.join(found)} |", "| --- |" + " --- |" * len(found)]
    for key in keys:
        cells = [row.get(key, "-") for row in found.values()]
        words = [f"{cell:,.4g}" if isinstance(cell, int | float) else str(cell) for cell in cells]
        lines.append(f"| {key} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rivals", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--only", nargs="*", help="of: " + " ".join(kind.name for kind in RIVALS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--many", type=int, nargs="*", default=[200, 500])
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--svg", type=Path, help="draw them, too")
    args = parser.parse_args()
    for package in ("orchestrator", "workers"):
        # As pip does with what it installs, the rivals among it; a checkout may not be compiled.
        compileall.compile_dir(ZOO.parent.parent / package, quiet=1)
    found = rows(args)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    if args.svg:
        args.svg.write_text(draw(found))


if __name__ == "__main__":
    main()
