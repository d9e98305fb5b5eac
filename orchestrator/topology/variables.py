"""`${VAR}` and `${VAR:-default}` in the strings of a topology.

A variable that isn't set and has no default is a mistake, never an empty string: the topology that
comes up with half a path is harder to explain than the one that doesn't come up. As in a shell,
`:-` also stands in for a variable that is set but empty. `$${` is a literal `${`.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.topology.complaints import Finding, Path

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$\$\{{|\$\{{(?:({_NAME})(:-[^}}]*)?\}})?")


def expand(
    tree: dict[str, Any], variables: Mapping[str, str]
) -> tuple[dict[str, Any], set[Path], list[Finding]]:
    """Return a copy with variables expanded, where that happened, and what couldn't be.

    A string that couldn't be expanded stays as it was.
    """
    findings: list[Finding] = []
    touched: set[Path] = set()

    def walk(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: walk(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [walk(each, (*path, index)) for index, each in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        problems = [Finding(path, *each) for each in _problems(value, variables)]
        if problems:
            findings.extend(problems)
            return value
        touched.add(path)
        return _REFERENCE.sub(lambda match: _replacement(match, variables), value)

    return walk(tree, ()), touched, findings


def referenced_variables(text: str) -> set[str]:
    """Every variable that the TOML text names; none when it can't be parsed."""
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return set()
    return {match[1] for each in _strings(tree) for match in _REFERENCE.finditer(each) if match[1]}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _problems(value: str, variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for match in _REFERENCE.finditer(value):
        name = match[1]
        if match[0] == "${":
            right = "write ${NAME} or ${NAME:-default}, or $${ for a literal ${"
            yield "${ begins no variable", right
        elif name and not match[2] and name not in variables:
            yield f"the variable {name} isn't set", f"set it, or write ${{{name}:-default}}"


def _replacement(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match[0] == "$${":
        return "${"
    value = variables.get(match[1], "")
    return match[2][2:] if match[2] and not value else value
