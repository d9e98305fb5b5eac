"""How a plain command is asked whether it is ready, and whether it still lives.

Two questions that are easily confused and cost differently. `ready` says when others may rely on
the process; a ready one that stops answering is shown as unready and left alone, for that may pass.
`live`, which nobody has to write, says when it is so stuck that only a restart helps. So the second
is asked seldom and believed late.
"""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from orchestrator.topology.table import Table
from orchestrator.topology.units import PositiveDuration, shown

Kind = Literal["http", "tcp", "exec", "log", "notify"]
KINDS: tuple[Kind, ...] = ("http", "tcp", "exec", "log", "notify")
"""The ways of asking, in the order in which they are listed."""

PORT_MAX = 65_535


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


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def _check_url(value: str) -> str:
    right = 'write one like "http://127.0.0.1:9000/health"'
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown(value)} is no URL ({error}); {right}") from None
    odd = not value.isascii() or not value.isprintable() or " " in value
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or odd:
        raise ValueError(f"{shown(value)} is no URL; {right}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"no credentials here, `status` shows this URL; {right}")
    return value


def _check_origin(value: str) -> str:
    parts = urlsplit(_check_url(value))
    right = 'write one like "http://127.0.0.1:9000"'
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{shown(value)} says more than where it listens; {right}")
    if parts.hostname not in LOOPBACK:
        raise ValueError(f"{shown(value)} is not on this machine; {right}")
    return value.rstrip("/")


def _check_address(value: str) -> str:
    host, _, port = value.rpartition(":")
    fits = re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+", host) and re.fullmatch("[0-9]+", port)
    if not fits or not 0 < int(port) <= PORT_MAX:
        raise ValueError(f'{shown(value)} is no address; write one like "127.0.0.1:9000"')
    return value


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        message = f"not a regular expression ({error}); write one like 'listening on port \\d+'"
        raise ValueError(message) from None
    if not value:
        raise ValueError("it would match any line; write one like 'listening on port \\d+'")
    return value


def parse_notify(value: object) -> str:
    """Who may say that the process is ready: "main" (also written `true`) or "all"."""
    if value is True or value == "main":
        return "main"
    if value == "all":
        return "all"
    raise ValueError(
        f'{shown(value)} is neither true nor "all"; write true, or "all" where a child says it'
    )


Url = Annotated[str, AfterValidator(_check_url)]
Origin = Annotated[str, AfterValidator(_check_origin)]
Address = Annotated[str, AfterValidator(_check_address)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]
Notify = Annotated[
    Literal["main", "all"],
    PlainValidator(parse_notify),
    WithJsonSchema({"anyOf": [{"const": True}, {"enum": ["main", "all"]}]}),
]


class Asking(Table):
    """What can be asked of any process, at any time."""

    http: Url | None = Field(
        default=None, description="A GET of this URL is answered with 2xx. Redirects don't count."
    )
    tcp: Address | None = Field(default=None, description="This HOST:PORT accepts a connection.")
    exec_: Command | None = Field(
        default=None,
        alias="exec",
        description="This command exits with 0; it has the process's environment and directory, "
        "and is killed with its children at the timeout.",
    )

    @property
    def probes(self) -> dict[Kind, Any]:
        """The ways that are given, by name: exactly one in a valid file."""
        everything = self.model_dump(by_alias=True, exclude_none=True)
        return {key: everything[key] for key in KINDS if key in everything}


class Readiness(Asking):
    """How a process shows that it is ready: exactly one of these, or none at all."""

    log: Pattern | None = Field(
        default=None, description="A line of its log matches this regular expression."
    )
    notify: Notify | None = Field(
        default=None,
        description="It says READY=1 on $NOTIFY_SOCKET, as for systemd: `true` takes it from the "
        'main process only, "all" from any process of its tree.',
    )
    period_s: PositiveDuration = Field(
        default=2.0,
        description="How often a ready process is asked again. A starting one is asked sooner, "
        "at least once a second. `log` and `notify` aren't asked again.",
    )
    timeout_s: PositiveDuration = Field(
        default=2.0, description="An answer that takes longer is none."
    )
    misses: int = Field(
        default=3, ge=1, description="So many in a row without an answer, and it is unready."
    )


class Liveness(Asking):
    """When a process is so stuck that it must be restarted: exactly one of these."""

    period_s: PositiveDuration = Field(
        default=10.0, description="How often it is asked, once it is ready."
    )
    timeout_s: PositiveDuration = Field(
        default=10.0, description="An answer that takes longer is none."
    )
    misses: int = Field(
        default=6, ge=1, description="So many in a row without an answer, and it is restarted."
    )
