"""The JSON Schema of a topology, for editors: completion, hover texts, red lines while typing.

It is made from the same models that judge the file, so it can't fall behind them. It is laxer than
they are where it must be: any value may also be a string that names a variable.
"""

from typing import Any

from orchestrator.topology.schema import Topology
from orchestrator.topology.units import format_duration, format_size
from orchestrator.wire.ids import NAME

_VARIABLE = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]",
    "description": "Expanded from the environment: ${VAR} or ${VAR:-default}.",
}
_NAMED_TABLES = ("roles", "processes")


def json_schema() -> dict[str, Any]:
    """Build the schema as plain data, in the same order each time."""
    schema = Topology.model_json_schema(by_alias=True)
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        table.pop("title", None)
        for key, each in table["properties"].items():
            table["properties"][key] = _key(each, schema["$defs"])
    name = f"^(?:{NAME.pattern})$"
    schema["properties"]["name"] |= {"pattern": name}
    for key in _NAMED_TABLES:
        schema["properties"][key] |= {"propertyNames": {"pattern": name}}
    schema["$defs"]["variable"] = _VARIABLE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dynorch topology",
        **schema,
    }


def _key(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in schema.items() if key != "title"}
    choices = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if schema.get("default", ...) is None:
        # An optional key is left out; TOML has no null.
        del schema["default"]
    schema.pop("anyOf", None)
    if len(choices) == 1:
        schema = choices[0] | schema
    elif choices:
        schema["anyOf"] = choices
    if "$ref" in schema:
        # pydantic leaves out a description that is the same as that of the table.
        table = definitions[schema["$ref"].rpartition("/")[2]]
        schema.setdefault("description", table["description"])
    unit = schema.pop("x-unit", None)
    if unit and "default" in schema:
        write = format_duration if unit == "s" else format_size
        schema["default"] = write(schema["default"])
    return schema if _is_free(schema) else _or_variable(schema)


def _is_free(schema: dict[str, Any]) -> bool:
    """Whether a string with a variable in it fits anyway, or can't stand here at all."""
    if schema.get("type") == "string":
        return "pattern" not in schema and "enum" not in schema
    return "$ref" in schema or schema.get("type") in ("object", "array")


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    outside = {key: each for key, each in schema.items() if key in ("description", "default")}
    inside = {key: each for key, each in schema.items() if key not in outside}
    choices = inside.get("anyOf", [inside])
    return {**outside, "anyOf": [*choices, {"$ref": "#/$defs/variable"}]}
