"""Plain commands: readiness, order of starts, and ports that two of them would want."""

import difflib
import itertools
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.probes import KINDS, Asking
from orchestrator.topology.schema import FRONTEND, Topology
from orchestrator.topology.table import Condition, toml_key


def probes(topology: Topology) -> Iterator[Finding]:
    """One way of asking, not two; and no key that this way doesn't use."""
    for name, process in topology.processes.items():
        for key, asking in (("ready", process.ready), ("live", process.live)):
            if asking is not None:
                yield from _one_way(("processes", name, key), asking)


def _one_way(path: Path, asking: Asking) -> Iterator[Finding]:
    ways = [way for way in KINDS if way in type(asking).model_fields or way == "exec"]
    given = asking.probes
    if len(given) != 1:
        wrong = " and ".join(given) + " together" if given else "nothing to look at"
        right = f"write one of {', '.join(ways[:-1])} and {ways[-1]}"
        right += "" if given else f", or no {path[-1]}"
        yield Finding(path, wrong, right, tuple((*path, way) for way in KINDS))
        return
    (way,) = given
    if way in {"log", "notify"}:
        for attribute in ("period_s", "timeout_s", "misses"):
            if attribute in asking.model_fields_set:
                wrong = f"{way} isn't asked: the process says it once, by itself"
                yield Finding((*path, toml_key(attribute)), wrong, "leave it out")


def oneshots(topology: Topology) -> Iterator[Finding]:
    """Check that what runs once isn't kept running and has no probe: ready means ended."""
    for name, process in topology.processes.items():
        path: Path = ("processes", name)
        if not process.oneshot:
            continue
        restart = process.restart
        if "policy" in restart.model_fields_set and restart.policy == "always":
            wrong = "a oneshot ends on purpose and would run again and again"
            right = 'write policy = "on-failure", or leave it out'
            yield Finding((*path, "restart", "policy"), wrong, right, ((*path, "oneshot"),))
        for key, given in (
            ("ready", process.ready), ("live", process.live), ("watchdog", process.watchdog_s),
        ):  # fmt: skip
            if given is not None:
                wrong = "a oneshot is done when it has ended with 0, and nobody asks it before"
                yield Finding((*path, key), wrong, "leave it out", ((*path, "oneshot"),))


def drains(topology: Topology) -> Iterator[Finding]:
    """Refuse a drain: a plain command knows nothing of requests."""
    for name, process in topology.processes.items():
        if process.stop.drain_s and "drain_s" in process.stop.model_fields_set:
            wrong = "a plain command can't be asked to drain"
            right = "write grace, the time it has after SIGTERM"
            yield Finding(("processes", name, "stop", "drain"), wrong, right)


def dependencies(topology: Topology) -> Iterator[Finding]:
    """Check that what is waited for exists."""
    needs = _needs(topology)
    known = [*topology.roles, *topology.processes]
    if topology.has_frontend:
        known.append(FRONTEND)
    for path, names in needs.items():
        for index, (name, condition) in enumerate(names.items()):
            where: Path = (*path, "depends-on", index if condition is None else name)
            if name == path[1]:
                yield Finding(where, "it would wait for itself", "leave it out")
            elif name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                others = ", ".join(each for each in known if each != path[1]) or "none"
                right = f"did you mean {close[0]}?" if close else f"there are: {others}"
                wrong = f'nothing is called "{name}"'
                # The name may be that of a table that was too wrong to be read.
                uses: tuple[Path, ...] = (("roles", name), ("processes", name))
                yield Finding(where, wrong, right, uses)


def conditions(topology: Topology) -> Iterator[Finding]:
    """Check that what is waited for can come to be so: some are never ready, some never end."""
    for path, names in _needs(topology).items():
        for name, condition in names.items():
            where: Path = (*path, "depends-on", name)
            process = topology.processes.get(name)
            other = process or topology.roles.get(name) or topology.frontend
            oneshot = process is not None and process.oneshot
            if condition == "ready" and oneshot:
                wrong = f"{name} is a oneshot: it is never ready, it ends"
                yield Finding(where, wrong, 'write "completed"', (("processes", name, "oneshot"),))
            if condition == "completed" and not oneshot and other.restart.policy == "always":
                wrong = f"{name} never completes: it is restarted also after an exit with 0"
                right = 'write "ready"' + (", or make it a oneshot" if process is not None else "")
                tables: tuple[Path, ...] = (("roles", name), ("processes", name))
                uses = (("restart",), *((*table, "restart") for table in tables))
                yield Finding(where, wrong, right, (*uses, ("processes", name, "oneshot")))


def cycles(topology: Topology) -> Iterator[Finding]:
    """Nobody waits for somebody who waits for them; in `rest-for-one` each waits for the former."""
    tables = {str(path[1]): path for path in _needs(topology)}
    needs = {str(path[1]): tuple(names) for path, names in _needs(topology).items()}
    for group in topology.groups.values():
        if group.strategy == "rest-for-one":
            for first, then in itertools.pairwise(dict.fromkeys(group.members)):
                needs[then] = (*needs.get(then, ()), first)
    reported: set[frozenset[str]] = set()
    for start in needs:
        cycle = _cycle(needs, start)
        if len(cycle) < 2 or frozenset(cycle) in reported:
            continue
        reported.add(frozenset(cycle))
        ring = " -> ".join([*cycle, start])
        wrong = f"nothing in {ring} could ever start"
        uses = tuple((*tables[name], "depends-on") for name in cycle)
        yield Finding((*tables[start], "depends-on"), wrong, "take one of these out", uses)


def ports(topology: Topology) -> Iterator[Finding]:
    """Two programs can't listen on the same port of this machine."""
    taken: dict[int, str] = {}
    for who, path, port in listeners(topology):
        if taken.get(port, who) != who:
            wrong = f"port {port} is wanted by both {taken[port]} and {who}"
            uses: tuple[Path, ...] = (("frontend", "port"),)
            yield Finding(path, wrong, "give each a port of its own", uses)
        taken.setdefault(port, who)


def _needs(topology: Topology) -> dict[Path, dict[str, Condition | None]]:
    needs: dict[Path, dict[str, Condition | None]] = {
        ("roles", name): role.depends_on for name, role in topology.roles.items()
    }
    needs |= {("processes", name): each.depends_on for name, each in topology.processes.items()}
    return needs


def _cycle(needs: Mapping[str, tuple[str, ...]], start: str) -> list[str]:
    """Find a shortest way from `start` through what it needs back to itself; empty if none."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for name in needs.get(way[-1], ()):
            if name == start:
                return way
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def listeners(topology: Topology) -> Iterator[tuple[str, Path, int]]:
    """Who must listen where on this machine, as far as the file tells."""
    if topology.has_frontend:
        yield FRONTEND, ("frontend", "port"), topology.frontend.port
    for name, process in topology.processes.items():
        path: Path = ("processes", name)
        ready, serves = process.ready, process.serves
        if ready is not None and ready.tcp is not None:
            host, _, number = ready.tcp.rpartition(":")
            if _is_here(host.strip("[]")):
                yield name, (*path, "ready", "tcp"), int(number)
        if ready is not None and ready.http is not None and (port := _port_here(ready.http)):
            yield name, (*path, "ready", "http"), port
        if serves is not None and (port := _port_here(serves.url)):
            yield name, (*path, "serves", "url"), port


def _port_here(text: str) -> int:
    """Return the port of this machine that a URL leads to; 0 if it leads to another one."""
    url = urlsplit(text)
    if not _is_here(url.hostname or ""):
        return 0
    return url.port or (443 if url.scheme == "https" else 80)


def _is_here(host: str) -> bool:
    return host.startswith("127.") or host in {"localhost", "::1", "0.0.0.0", "::"}  # noqa: S104
