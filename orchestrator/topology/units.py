"""Durations and sizes as people write them: a number is nothing without its unit.

Durations become float seconds, sizes become int bytes. A bare number is refused rather than
guessed at, because "30" is half a minute to one operator and thirty milliseconds to another.
"""

import re
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_UNITS_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
DURATION_PATTERN = rf"^(?:{_NUMBER}(?:ms|s|m|h|d))+$"
SIZE_PATTERN = rf"^{_NUMBER} ?(?:[KMGT]i?B|B)$"
_DURATION = re.compile(DURATION_PATTERN)
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_SIZE = re.compile(rf"^({_NUMBER}) ?([KMGT]i?B|B)$")


def shown(value: object) -> str:
    """Write a TOML value as the operator did, near enough, for a complaint."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value + '"'
    if isinstance(value, list | tuple):
        return "a list"
    return "a table" if isinstance(value, dict) else str(value)


def parse_duration(value: object) -> float:
    """Seconds from "90s", "250ms" or "1m30s"; ValueError with what would be right."""
    if isinstance(value, str) and _DURATION.fullmatch(value):
        parts = _DURATION_PART.findall(value)
        return float(sum(float(number) * DURATION_UNITS_S[unit] for number, unit in parts))
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'{value} has no unit; write "{value}s" if seconds are meant')
    raise ValueError(f'{shown(value)} is not a duration; write one like "90s", "250ms" or "5m"')


def parse_positive_duration(value: object) -> float:
    """Seconds, like `parse_duration`, but more than zero of them."""
    if seconds := parse_duration(value):
        return seconds
    raise ValueError(f"{shown(value)} is no time at all; write more than 0s")


def parse_size(value: object) -> int:
    """Bytes from "20GiB" or "50MB"; ValueError with what would be right."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        if size_bytes := round(float(match[1]) * SIZE_UNITS_BYTES[match[2]]):
            return size_bytes
        raise ValueError(f"{shown(value)} is no size at all; write more than 0B")
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f'{value} has no unit; write "{value}B" if bytes are meant')
    raise ValueError(f'{shown(value)} is not a size; write one like "20GiB" or "50MB"')


def format_duration(seconds: float) -> str:
    """Write a duration so that it parses back to the same."""
    if seconds != 0 and seconds < 1:
        return f"{seconds * 1000:g}ms"
    return f"{seconds:.10g}s"


def format_size(size_bytes: int) -> str:
    """Write a size in the largest binary unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % SIZE_UNITS_BYTES[unit] == 0:
            return f"{size_bytes // SIZE_UNITS_BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _schema(pattern: str, example: str, unit: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, "examples": [example], "x-unit": unit}


Duration = Annotated[
    float, PlainValidator(parse_duration), WithJsonSchema(_schema(DURATION_PATTERN, "90s", "s"))
]
PositiveDuration = Annotated[
    float,
    PlainValidator(parse_positive_duration),
    WithJsonSchema(_schema(DURATION_PATTERN, "90s", "s")),
]
Size = Annotated[
    int, PlainValidator(parse_size), WithJsonSchema(_schema(SIZE_PATTERN, "20GiB", "bytes"))
]
