"""The frontend's settings, as they arrive in `WorkerConfig.options`.

The operator's file was checked before anything was started, so a mistake found here is between
the daemon and this worker; it is still answered in words, because somebody has to read it.
"""

from typing import Annotated, Any, Literal

import msgspec

MIB = 1 << 20

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class KvTransfer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """How prompts get from prefill to decode, if the topology has both.

    `lease_s`: how long prefill keeps blocks that nobody fetched. `enforce`: decode may not read
    prompts by itself.
    """

    lease_s: Seconds = msgspec.field(default=120.0, name="lease")
    enforce: bool = False


class Options(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True
):
    """Everything that can be set. Sizes are bytes, durations seconds.

    `port` 0 takes any free one. `requests_max` bounds the requests that are open at once, and
    with `body_max` the memory they can hold. `retries` is how often a request may be started
    again after a worker died with it. `request_timeout_s` bounds a whole request; without it a
    request may take as long as its worker lives and its client stays. `hold_s`: how long one may
    wait for a worker that was asked to restart.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    routing: Literal["round-robin", "least-loaded", "prefix"] = "round-robin"
    body_max: Positive = 32 * MIB
    requests_max: Positive = 4096
    retries: Annotated[int, msgspec.Meta(ge=0)] = 1
    stream_buffer_max: Positive = MIB
    request_timeout_s: Seconds | None = msgspec.field(default=None, name="request-timeout")
    hold_s: Annotated[float, msgspec.Meta(ge=0)] = msgspec.field(default=30.0, name="hold")
    drain_timeout_s: Seconds = msgspec.field(default=30.0, name="drain-timeout")
    topology: str = ""
    kv_transfer: KvTransfer = KvTransfer()


class OptionsError(Exception):
    """A setting is unknown or can't be what it is; the text says which."""


def load(options: dict[str, Any]) -> Options:
    """Check and convert; OptionsError with the key and what would be right."""
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        keys = ", ".join(field.encode_name for field in msgspec.structs.fields(Options))
        raise OptionsError(f"frontend options: {error}; the keys are {keys}") from None
