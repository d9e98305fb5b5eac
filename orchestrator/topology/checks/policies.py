"""Times that must agree with each other, wherever in the file each of them stands."""

from collections.abc import Iterator

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.policies import STOP_MARGIN_S, LivenessPolicy, Supervised
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import Frontend, Topology
from orchestrator.topology.table import Table, toml_key
from orchestrator.topology.units import format_duration

Watched = Frontend | EngineRole
"""Tables of workers that beat."""


def consistent(written: Topology, whole: Topology) -> Iterator[Finding]:
    """Check each table with its defaults filled in; blame the key that really stands there."""
    places: list[tuple[Path, Supervised, Supervised]] = [
        (("frontend",), written.frontend, whole.frontend)
    ]
    places += [(("roles", name), written.roles[name], whole.roles[name]) for name in whole.roles]
    places += [
        (("processes", name), written.processes[name], whole.processes[name])
        for name in whole.processes
    ]
    alive: list[tuple[Path, Watched, Watched]] = [(("frontend",), written.frontend, whole.frontend)]
    alive += [(("roles", name), written.roles[name], whole.roles[name]) for name in whole.roles]
    # A bad default is found once in each table that it reaches, and is one mistake: the table that
    # asks most of it speaks for all.
    places.sort(key=lambda place: -_margin_s(place[2]))
    found: dict[Path, Finding] = {}
    for place in places:
        for finding in (
            *_stop(written, *place),
            *_longest(written, *place, ("start", "timeout_s", "timeout_max_s")),
            *_longest(written, *place, ("stop", "grace_s", "grace_max_s")),
            *_restart(written, *place),
        ):  # fmt: skip
            found.setdefault(finding.path, finding)
    for path, inner, effective in alive:
        for finding in _liveness(written, path, inner, effective.liveness):
            found.setdefault(finding.path, finding)
    yield from found.values()


def _stop(
    written: Topology, path: Path, inner: Supervised, effective: Supervised
) -> Iterator[Finding]:
    stop = effective.stop
    margin_s = _margin_s(effective)
    least_s = stop.drain_s + margin_s
    if stop.grace_s >= least_s:
        return
    grace = _where(written, path, inner, "stop", "grace_s")
    drain = _where(written, path, inner, "stop", "drain_s")
    why = "drain" if not margin_s else f"drain + {format_duration(margin_s)}"
    wrong = f"grace {format_duration(stop.grace_s)} is less than {why}, so the kill comes too early"
    right = f'write grace = "{format_duration(least_s)}" or more'
    if margin_s:
        right += ", or a shorter drain"
    yield Finding(grace or drain or (*path, "stop"), wrong, right, _both(path, "stop"))


def _longest(
    written: Topology,
    path: Path,
    inner: Supervised,
    effective: Supervised,
    names: tuple[str, str, str],
) -> Iterator[Finding]:
    """What may be asked for can't be less than what is given unasked."""
    table, usual, most = names
    longest = _where(written, path, inner, table, most)
    usual_s, most_s = (getattr(getattr(effective, table), each) for each in (usual, most))
    if most_s >= usual_s or longest is None:
        return  # a time that is longer than the default's limit moves that
    key, limit = toml_key(most), format_duration(usual_s)
    wrong = f"{key} {format_duration(most_s)} is less than {toml_key(usual)}, {limit}"
    yield Finding(longest, wrong, f'write {key} = "{limit}" or more', _both(path, table))


def _restart(
    written: Topology, path: Path, inner: Supervised, effective: Supervised
) -> Iterator[Finding]:
    restart = effective.restart
    if restart.backoff_max_s >= restart.backoff_initial_s:
        return
    longest = _where(written, path, inner, "restart", "backoff_max_s")
    first = _where(written, path, inner, "restart", "backoff_initial_s")
    limit = format_duration(restart.backoff_max_s)
    wrong = f"the first delay, {format_duration(restart.backoff_initial_s)}, is longer than "
    wrong += f"backoff-max, {limit}"
    right = f'write backoff-initial = "{limit}" or less'
    where = longest or first or (*path, "restart")
    yield Finding(where, wrong, right, _both(path, "restart"))


def _liveness(
    written: Topology, path: Path, inner: Watched, alive: LivenessPolicy
) -> Iterator[Finding]:
    """Unready comes before dead, and an idle engine gets no more time than a busy one."""
    silence_s = alive.misses * alive.beat_s
    wrong: dict[tuple[str, ...], tuple[str, str]] = {}
    if alive.expire_s <= silence_s:
        least = format_duration(silence_s)
        said = f"expire {format_duration(alive.expire_s)} isn't more than the {alive.misses} beats"
        wrong["expire_s", "misses", "beat_s"] = (
            f"{said} that may be missed, {least}",
            f"write more than {least}",
        )
    for lesser, greater in (("unready_s", "hang_s"), ("hang_s", "busy_s")):
        least_s, given_s = getattr(alive, lesser), getattr(alive, greater)
        if given_s < least_s:
            key, least = toml_key(greater), format_duration(least_s)
            said = f"{key} {format_duration(given_s)} is less than {toml_key(lesser)}, {least}"
            wrong[greater, lesser] = (said, f'write {key} = "{least}" or more')
    for attributes, words in wrong.items():
        places = [_where(written, path, inner, "liveness", each) for each in attributes]
        where = next(filter(None, places), (*path, "liveness"))
        yield Finding(where, *words, _both(path, "liveness"))


def _margin_s(effective: Supervised) -> float:
    """What the grace must cover beside the drain: more where the engine may be vLLM."""
    may_be_vllm = isinstance(effective, EngineRole) and effective.engine != "sim"
    return STOP_MARGIN_S if may_be_vllm else 0.0


def _where(written: Topology, path: Path, inner: Table, table: str, attribute: str) -> Path | None:
    """Find the key that decides: the inner table's, else the top level's, else none was written."""
    for prefix, holder in ((path, inner), ((), written)):
        if attribute in getattr(holder, table).model_fields_set:
            return (*prefix, table, toml_key(attribute))
    return None


def _both(path: Path, table: str) -> tuple[Path, ...]:
    """Both tables that the value may come from: a wrong key in either makes it guesswork."""
    return ((*path, table), (table,), (*path, "engine"))
