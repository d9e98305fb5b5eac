"""pydantic's errors in the operator's words: what is wrong, and what would be right.

pydantic knows what it expected; this module knows how a person would have written it. The nearest
valid key or value is offered for a typo, and a value of the wrong type is shown as it would be
written in the right one.
"""

import difflib
import re
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.schema import Topology
from orchestrator.topology.table import Table
from orchestrator.topology.units import shown

_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a table",
    "model_type": "a table",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than_equal": ("too small", "at least", "ge"),
    "greater_than": ("too small", "more than", "gt"),
    "less_than_equal": ("too large", "at most", "le"),
    "less_than": ("too large", "less than", "lt"),
}
_REQUIRED = {
    "name": 'name = "my-topology"',
    "command": 'command = ["program", "argument"]',
    "url": 'url = "http://127.0.0.1:9000"',
    "models": 'models = ["name"]',
    "connector": 'connector = "nixl"',
    "fault": 'fault = "crash"',
}


def finding(error: ErrorDetails) -> Finding:
    """Say one of pydantic's errors so that it can be acted upon."""
    return Finding(error["loc"], *_words(error))


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """Guess the valid word that was meant, also when written with `_` for `-`."""
    choices = list(valid)
    plain = word.lower().strip("-").replace("_", "-")
    close = difflib.get_close_matches(plain, choices, n=1)
    return close[0] if close else None


def keys_at(path: Path) -> list[str]:
    """List the keys that the table at this path may have; none where it isn't one of ours."""
    current: Any = Topology
    for step in path:
        if _is_table(current):
            fields = {field.alias: field.annotation for field in current.model_fields.values()}
            current = _unwrapped(fields.get(str(step)))
        else:
            arguments = get_args(current)
            current = _unwrapped(arguments[-1 if get_origin(current) is dict else 0])
    if not _is_table(current):
        return []
    return [str(field.alias) for field in current.model_fields.values()]


def _words(error: ErrorDetails) -> tuple[str, str]:
    kind, value, path = error["type"], error["input"], error["loc"]
    if kind == "extra_forbidden":
        return "unknown key", _known(path)
    if kind == "missing":
        return "this key is required", f"add {_REQUIRED.get(str(path[-1]), path[-1])}"
    if kind == "literal_error":
        return f"{shown(value)} isn't one of its values", _choice(value, error["ctx"]["expected"])
    if kind == "value_error":
        wrong, _, right = str(error["ctx"]["error"]).partition("; ")
        return wrong, right
    if kind in _BOUNDS:
        wrong, bound, name = _BOUNDS[kind]
        return f"{shown(value)} is {wrong}", f"write {bound} {error['ctx'][name]}"
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}, got {shown(value)}", _corrected(kind, value)
    if kind == "string_too_short":
        return "it is empty", "write something, or leave the key out"
    return error["msg"], "compare with what `dynorch schema` prints"


def _known(path: Path) -> str:
    key, valid = str(path[-1]), keys_at(path[:-1])
    if close := nearest(key, valid):
        return f"did you mean {close}?"
    for table in ("frontend", "restart", "start", "stop", "log", "kv-transfer"):
        if key in keys_at((table,)) and path[:-1] != (table,):
            return f"it belongs in {table} = {{ {key} = ... }}"
    if len(path) == 3 and path[0] == "roles":
        return "a vLLM flag belongs in vllm = { ... }; known keys: " + ", ".join(valid)
    return "known keys: " + ", ".join(valid)


def _choice(value: object, expected: str) -> str:
    choices = re.findall(r"'([^']+)'", expected)
    close = nearest(value, choices) if isinstance(value, str) else None
    if len(choices) == 1:
        return f'write "{choices[0]}"'
    every = ", ".join(f'"{each}"' for each in choices)
    return f'did you mean "{close}"? It is one of {every}' if close else f"write one of {every}"


def _corrected(kind: str, value: object) -> str:
    if kind == "tuple_type":
        return f"write [{shown(value)}]" if isinstance(value, str) else 'write ["..."]'
    if kind in ("dict_type", "model_type"):
        return "write { key = value }, or a [table] of its own"
    if kind == "string_type" and isinstance(value, int | float):
        return f'write "{str(value).lower()}"'
    text = value.strip().lower() if isinstance(value, str) else ""
    if kind == "bool_type":
        return f"write {text}" if text in ("true", "false") else "write true or false"
    if kind in ("int_type", "int_from_float", "float_type") and re.fullmatch(r"[0-9.]+", text):
        return f"write {text}, without quotes"
    if kind == "string_type":
        return 'write "..." with quotes'
    return "write a whole number, without quotes" if kind != "float_type" else "write a number"


def _is_table(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Table)


def _unwrapped(annotation: Any) -> Any:
    """`Annotated[X, ...]` and `X | None` are X."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return _unwrapped(next(each for each in get_args(annotation) if each is not NoneType))
    return annotation
