"""What every table of the file has in common.

Keys are kebab-case in TOML and snake_case in Python, where durations end in `_s` and sizes in
`_bytes`; the unit is part of the value in the file ("90s") and of the name in the code. Tables are
strict (no guessing of types), closed (no unknown keys) and frozen.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)

from orchestrator.topology.units import shown

_UNIT = re.compile(r"_(s|bytes)$")


def toml_key(attribute: str) -> str:
    """`backoff_max_s` -> `backoff-max`."""
    return _UNIT.sub("", attribute).replace("_", "-")


class Table(BaseModel):
    """A TOML table with known keys."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=toml_key,
        validate_by_alias=True,
        hide_input_in_errors=True,
        use_enum_values=True,
    )


Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of strings."""


def parse_names(value: object) -> tuple[str, ...]:
    """One name or a list of them; ValueError otherwise."""
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, list) and value and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise ValueError(f'{shown(value)} is not a name; write one like "chat" or ["chat", "small"]')


Names = Annotated[
    tuple[str, ...],
    PlainValidator(parse_names),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]


Condition = Literal["started", "ready", "completed"]


def parse_dependencies(value: object) -> object:
    """Make a list of names a table without conditions; ValueError if it is neither."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        wrote = f"[{shown(value)}]" if isinstance(value, str) else '["..."]'
        raise ValueError(f"expected a list, got {shown(value)}; write {wrote}")
    for each in value:
        if not isinstance(each, str):
            raise ValueError(f'{shown(each)} is not a name; write one like "cache"')
        if value.count(each) > 1:
            raise ValueError(f"{each} is there twice; name it once")
    return dict.fromkeys(value)


Dependencies = Annotated[
    dict[str, Condition | None],
    BeforeValidator(parse_dependencies),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                {
                    "type": "object",
                    "additionalProperties": {
                        "anyOf": [
                            {"enum": ["started", "ready", "completed"]},
                            {"type": "string", "pattern": r"\$\{[A-Za-z_]"},
                        ]
                    },
                },
            ]
        }
    ),
]
"""Names, each with the condition that the file gives; None where it is only listed."""
DEPENDS_ON: dict[str, Condition | None] = Field(
    default={},
    description="Roles or processes that come first: a list, or a table that gives each a "
    'condition, like { cache = "started" }. started: it runs. ready: it is ready; what a list '
    "means. completed: it has exited with 0; what a list means for a oneshot. Looked at anew at "
    "every start.",
)


def parse_gpus(value: object) -> int | float | tuple[int | str, ...]:
    """Read a count, a fraction below 1, or a list of indices and UUIDs; ValueError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"{value} GPUs; write a count like 1, or 0 for none")
        return value
    if isinstance(value, float):
        if not 0 < value < 1:
            raise ValueError(f"a fraction of a GPU lies between 0 and 1, not {value}; write 0.5")
        return value
    if isinstance(value, list) and value and all(_names_a_gpu(each) for each in value):
        return tuple(value)
    raise ValueError(
        f"{shown(value)} names no GPUs; write a count (2), a fraction (0.5), "
        'or a list of indices or UUIDs ([0, 1] or ["GPU-..."])'
    )


def _names_a_gpu(value: Any) -> bool:
    if isinstance(value, str):
        return value.startswith(("GPU-", "MIG-"))
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Gpus = Annotated[
    int | float | tuple[int | str, ...],
    PlainValidator(parse_gpus),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "anyOf": [
                            {"type": "integer", "minimum": 0},
                            {"type": "string", "pattern": "^(GPU|MIG)-"},
                        ]
                    },
                },
            ]
        }
    ),
]
"""GPUs per worker. A list is dealt to the role's workers in order."""
