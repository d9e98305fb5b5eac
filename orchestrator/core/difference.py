"""What a changed file changes: the smallest difference between what runs and what is asked for.

Each replica is judged by itself. What its processes were started with (argv, environment, GPUs,
options, directory) can only be changed by a new life. What only the daemon reads (how to restart,
stop, probe and log it, what it waits for) is changed under a running process, which never notices.
Some values that follow from others also reach processes; they are left out of the comparison, and
a process that lives on keeps the old ones until its next start.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from orchestrator.core import worker_env
from orchestrator.core.plan import PlannedWorker
from orchestrator.wire.ids import ReplicaId

Kind = Literal["unchanged", "live", "restart", "add", "remove"]

READ_BY_US = frozenset({"id", "replica", "member", "depends_on", "conditions", "serves"})
"""Fields of a planned worker that no process is started with; some are rules."""
TIMEOUTS = {
    worker_env.READY_TIMEOUT: "start.timeout_s",
    worker_env.STEP_TIMEOUT: "liveness.busy_s",
}
"""Variables that repeat a rule for vLLM's own use, unless an operator has set them."""
FOLLOWS = {"option drain-timeout", "cpus", "numa", "cpu-env"}
"""The frontend's own drain repeats `stop.drain`, for the day when no daemon tells it. Which cores
somebody has follows from how many others there are: no reason to end anybody.
"""
SHOWN_MAX = 60
"""Longer values are cut where people read them."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides about one replica.

    `members`: its workers. `cwd`: where relative paths begin. `kept_in`: how its tree is held
    together. `rules`: what only the daemon reads, by dotted name, as plain data.
    """

    members: tuple[PlannedWorker, ...]
    cwd: str
    kept_in: str = ""
    rules: dict[str, Any] = {}


class Delta(msgspec.Struct, frozen=True):
    """One key that differs. The texts are for people: cut, and without secrets."""

    key: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.key}: {self.was} -> {self.now}"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one replica, and which keys say so.

    `live`: applied at once, its processes are not touched.
    """

    replica: ReplicaId
    kind: Kind
    deltas: tuple[Delta, ...] = ()


def difference(
    old: Mapping[ReplicaId, Config], new: Mapping[ReplicaId, Config]
) -> tuple[Change, ...]:
    """Judge every replica of either side: those of `new` in its order, then what is removed."""
    changes = [
        _change(replica, old[replica], config)
        if replica in old
        else Change(replica=replica, kind="add")
        for replica, config in new.items()
    ]
    changes += [Change(replica=each, kind="remove") for each in sorted(old) if each not in new]
    return tuple(changes)


def same_life(old: Config, new: Config) -> bool:
    """Say whether a process started with one config is what the other asks for."""
    return not any(True for _ in _life_deltas(old, new))


def _change(replica: ReplicaId, old: Config, new: Config) -> Change:
    life = tuple(_life_deltas(old, new))
    rules = tuple(_mapping_deltas("", old.rules, new.rules))
    kind: Kind = "restart" if life else "live" if rules else "unchanged"
    return Change(replica=replica, kind=kind, deltas=life + rules)


def _life_deltas(old: Config, new: Config) -> Iterator[Delta]:
    if len(old.members) != len(new.members):
        yield Delta("members", str(len(old.members)), str(len(new.members)))
    follows = FOLLOWS | {f"env {name}" for name in TIMEOUTS if _follows(name, old, new)}
    seen: set[Delta] = set()
    for before, after in zip(old.members, new.members, strict=False):
        for delta in _worker_deltas(before, after):
            if delta.key not in follows and delta not in seen:
                seen.add(delta)
                yield delta
    if old.kept_in != new.kept_in:
        yield Delta("tree", old.kept_in, new.kept_in)
    if old.cwd != new.cwd and any(_minds_directory(each) for each in new.members):
        yield Delta("working directory", old.cwd, new.cwd)


def _minds_directory(worker: PlannedWorker) -> bool:
    """Say whether paths that begin in the file's directory may have reached this process."""
    return worker.engine == "vllm" or (worker.kind == "process" and worker.cwd is None)


def _worker_deltas(old: PlannedWorker, new: PlannedWorker) -> Iterator[Delta]:
    before, after = _plain(old), _plain(new)
    for field in before:
        if field in READ_BY_US or before[field] == after[field]:
            continue
        if field == "env":
            yield from _mapping_deltas("env ", old.env, new.env)
        elif field == "options":
            yield from _mapping_deltas("option ", before[field], after[field])
        elif field == "argv":
            # vLLM's options are its command line: told once, by their names.
            if before["options"] == after["options"] or not new.entry:
                argvs = (worker_env.masked_argv(each.argv) for each in (old, new))
                was, now = (" ".join(argv) for argv in argvs)
                yield Delta(field, _cut(was), _cut(now))
        elif field != "gpu_uuids" or before["gpus"] == after["gpus"]:
            yield Delta(field.replace("_", "-"), _shown(before[field]), _shown(after[field]))


def _mapping_deltas(lead: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Delta]:
    for name in sorted({*old, *new}):
        was, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if was != now:
            key = f"{lead}{name}"
            if _is_secret(name):
                yield Delta(key, worker_env.HIDDEN, f"another {worker_env.HIDDEN}")
            else:
                yield Delta(key, _shown(was), _shown(now))


_ABSENT = object()


def _is_secret(name: str) -> bool:
    return worker_env.HIDDEN in worker_env.masked({name: ""}).values() or worker_env.is_secret_flag(
        name
    )


def _follows(name: str, old: Config, new: Config) -> bool:
    """Say whether the engine's own time-out is on both sides ours, and not an operator's."""
    for config in (old, new):
        timeout = config.rules.get(TIMEOUTS[name])
        ours = None if timeout is None else worker_env.whole(timeout)
        if any(worker.env.get(name, ours) != ours for worker in config.members):
            return False
    return True


def _plain(worker: PlannedWorker) -> dict[str, Any]:
    """Compare values as they are written down: a tuple is a list there."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(worker))
    return plain


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not set)"
    if isinstance(value, list):
        return _cut(",".join(map(str, value)) or "none")
    return _cut(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."
