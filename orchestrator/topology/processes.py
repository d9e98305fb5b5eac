"""Plain commands that are supervised beside the workers: a metrics server, a cache, any server."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from orchestrator.topology.policies import (
    ON_DEPENDENCY_RESTART,
    GpuPolicy,
    OnDependencyRestart,
    Supervised,
)
from orchestrator.topology.table import Gpus, Strings, Table
from orchestrator.topology.units import shown


def parse_command(value: object) -> tuple[str, ...]:
    """Program and arguments; ValueError for a shell line or an empty list."""
    if isinstance(value, str):
        raise ValueError(
            "a command is a list, no shell reads it; write "
            '["program", "argument"], or ["sh", "-c", "..."] where a shell is wanted'
        )
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise ValueError('not a list of strings; write one like ["program", "argument"]')
    if not value[0]:
        raise ValueError('the program has no name; write one like ["program", "argument"]')
    return tuple(value)


Command = Annotated[
    tuple[str, ...],
    PlainValidator(parse_command),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1}),
]


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f'{shown(value)} is no URL; write one like "http://127.0.0.1:9000/health"')
    return value


def _check_address(value: str) -> str:
    if not re.fullmatch(r"\[?[^\s/]+\]?:[0-9]{1,5}", value):
        raise ValueError(f'{shown(value)} is no address; write one like "127.0.0.1:9000"')
    return value


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        message = f"not a regular expression ({error}); write one like 'listening on port \\d+'"
        raise ValueError(message) from None
    return value


class Readiness(Table):
    """How a process shows that it is ready: exactly one of these, or none at all."""

    http: Annotated[str, AfterValidator(_check_url)] | None = Field(
        default=None, description="Ready when a GET of this URL answers with 2xx."
    )
    tcp: Annotated[str, AfterValidator(_check_address)] | None = Field(
        default=None, description="Ready when this HOST:PORT accepts a connection."
    )
    exec_: Command | None = Field(
        default=None, alias="exec", description="Ready when this command exits with 0."
    )
    log: Annotated[str, AfterValidator(_check_pattern)] | None = Field(
        default=None, description="Ready when a log line matches this regular expression."
    )

    @property
    def probes(self) -> dict[str, Any]:
        """The keys that are given."""
        return self.model_dump(by_alias=True, exclude_none=True)


class Process(Supervised):
    """`[processes.NAME]`."""

    command: Command = Field(description="Program and arguments; no shell reads it.")
    cwd: str | None = Field(
        default=None,
        min_length=1,
        description="Working directory; the topology file's if not given.",
    )
    ready: Readiness | None = Field(
        default=None, description="How it shows that it is ready; ready once started if not given."
    )
    depends_on: Strings = Field(
        default=(), description="Roles or processes that must be ready first."
    )
    on_dependency_restart: OnDependencyRestart = ON_DEPENDENCY_RESTART
    gpus: Gpus | None = Field(
        default=None,
        description="GPUs it gets: a count, or a list of indices or UUIDs. None if not given.",
    )
    gpu: GpuPolicy = Field(default_factory=GpuPolicy, description="When its GPUs count as free.")
    oneshot: bool = Field(
        default=False, description="Runs once and ends; ready when it exited with 0."
    )
