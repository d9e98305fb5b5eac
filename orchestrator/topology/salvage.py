"""Make the best of a file with mistakes, so that one kind of mistake doesn't hide another.

pydantic judges every key on its own, but says nothing more once a key is wrong: whether the roles
fit together is a question about a whole topology. So each wrong key is reported, taken out, and
the rest is read again as if it had not been there. The checks that follow look at that remainder
and keep silent about everything that rests on a key that was taken out.
"""

import tomllib
from itertools import takewhile
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.schema import Topology
from orchestrator.topology.wording import finding, keys_at, nearest

ROUNDS_MAX = 32
"""Each round takes out every key that is wrong in it; two or three rounds are the rule."""
PLACEHOLDERS: dict[str, Any] = {
    "name": "unnamed",
    "command": ["true"],
    "connector": "nixl",
    "fault": "crash",
    "members": [],
    "strategy": "one-for-one",
    "url": "http://127.0.0.1:1",
    "models": "unnamed",
}
"""What stands in for a required key, so that the rest of its table can be judged."""
_UNQUOTED = {"int_type", "float_type", "bool_type", "value_error"}


def salvage(tree: dict[str, Any], expanded: set[Path]) -> tuple[Topology, list[Finding], set[Path]]:
    """Read what can be read; return it, what is wrong with the rest, and the rest's paths.

    Changes `tree`. At a path in `expanded` a string may stand for a number: variables are text.
    """
    findings: list[Finding] = []
    bad: set[Path] = set()
    for _ in range(ROUNDS_MAX):
        try:
            return Topology.model_validate(tree), findings, bad
        except ValidationError as error:
            details = error.errors(include_url=False)
        # The key that a typo stands for isn't missing, it is misspelt: one mistake, one complaint.
        bad |= {meant for each in details if (meant := _misspelt(tree, each))}
        fresh = set[Path]()
        for each in details:
            if each["loc"] in expanded and _repaired(tree, each):
                expanded.discard(each["loc"])
                continue
            if not lies_in(each["loc"], bad):
                findings.append(finding(each))
            fresh |= _take_out(tree, each)
        bad |= fresh
    raise AssertionError("a topology without keys must be readable")


def rests_on(path: Path, bad: set[Path]) -> bool:
    """Whether `path` is, lies in, or holds something that was taken out."""
    return any(path[: len(each)] == each[: len(path)] for each in bad)


def lies_in(path: Path, bad: set[Path]) -> bool:
    """Whether `path` is, or lies in, something that was taken out."""
    return any(path[: len(each)] == each for each in bad)


def _repaired(tree: dict[str, Any], error: ErrorDetails) -> bool:
    """Read an expanded string as TOML would without its quotes, where no string is wanted."""
    if error["type"] not in _UNQUOTED or not isinstance(error["input"], str):
        return False
    try:
        value = tomllib.loads(f"value = {error['input']}")["value"]
    except tomllib.TOMLDecodeError:
        return False
    if not isinstance(value, bool | int | float):
        return False
    *outer, last = error["loc"]
    _at(tree, tuple(outer))[last] = value
    return True


def _misspelt(tree: dict[str, Any], error: ErrorDetails) -> Path | None:
    if error["type"] != "extra_forbidden":
        return None
    *table, key = error["loc"]
    close = nearest(str(key), keys_at(tuple(table)))
    return (*table, close) if close and close not in _at(tree, tuple(table)) else None


def _take_out(tree: dict[str, Any], error: ErrorDetails) -> set[Path]:
    """Remove what is wrong; return every path that is no longer what the file says."""
    path = error["loc"]
    *outer, last = path
    if error["type"] == "missing":
        _at(tree, tuple(outer))[last] = PLACEHOLDERS[str(last)]
        return {path}
    # A list is judged as one value: without one of its elements it means something else.
    *outer, last = takewhile(lambda step: isinstance(step, str), path)
    _at(tree, tuple(outer)).pop(last, None)
    return {path, (*outer, last)}


def _at(tree: dict[str, Any], path: Path) -> Any:
    """Return the container at this path; an empty one where it has been taken out already."""
    current: Any = tree
    for step in path:
        if isinstance(current, dict):
            current = current.get(str(step), {})
        else:
            assert isinstance(step, int)
            current = current[step]
    return current
