"""What can be set on the simulator. Durations are seconds, sizes bytes; unknown keys are errors."""

from typing import Annotated, Any, Literal

import msgspec

from workers.runtime.engine import EngineConfigError

Positive = Annotated[int, msgspec.Meta(gt=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

FaultName = Literal[
    "crash",  # exit 1, or die by `signal`
    "exit-0",  # leave as if all were well
    "hang",  # block the event loop for ever
    "engine-hang",  # the loop turns, but no step is made any more, and no question answered
    "engine-stall",  # questions are answered, but no step is made any more
    "engine-death",  # the engine reports its own death
    "slow-start",  # `seconds` more
    "ignore-term",  # SIGTERM does nothing
    "leak-child",  # a child process that nobody ends
    "leak-daemon",  # the same, double-forked into its own session
    "allocate",  # `bytes` of memory, touched
    "drop-answer",  # a request is served, and its answer never sent
    "transfer-fail",  # a transfer of KV blocks fails
    "transfer-stall",  # a transfer of KV blocks never ends
    "log",  # nothing but `line`, which every other fault may print too
]


class Fault(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """One thing that goes wrong, once per life.

    It strikes during the start, or with the Nth request, or when N tokens were produced, or in the
    middle of the Nth transfer of KV blocks, on either side; the canary counts for none. `times`:
    only in the first so many incarnations. `member`: only in this member of a gang.
    """

    fault: FaultName
    after_requests: Positive | None = None
    after_tokens: Positive | None = None
    after_transfers: Positive | None = None
    times: Positive | None = None
    member: Annotated[int, msgspec.Meta(ge=0)] | None = None
    line: str = ""
    bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    seconds: Seconds = 0.0
    signal: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0


class KvTransfer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Of a prefill or decode worker: how long unread blocks are kept; what a failed read means."""

    lease: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    on_failure: Literal["recompute", "fail"] = "recompute"


class Options(
    msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True
):
    """The model of time and memory.

    `prefill_rate` and `transfer_rate` are prompt tokens a second; `step` the time of one decode
    step of the whole batch. `today` is what the chat template prints. `kv_transfer` is there in
    prefill and decode workers.
    """

    startup: Seconds = 0.0
    prefill_rate: Annotated[float, msgspec.Meta(gt=0)] = 20_000.0
    transfer_rate: Annotated[float, msgspec.Meta(gt=0)] = 1_000_000.0
    step: Seconds = 0.01
    batch_max: Positive = 256
    kv_blocks: Positive = 16_384
    block_size: Positive = 16
    max_model_len: Positive = 4096
    today: str = ""
    faults: list[Fault] = []
    kv_transfer: KvTransfer | None = None


def decode_options(raw: dict[str, Any]) -> Options:
    """Read the worker's options; EngineConfigError names the key that is wrong."""
    try:
        options = msgspec.convert(raw, Options)
    except msgspec.ValidationError as error:
        raise EngineConfigError(f"simulator options: {error}") from error
    if options.kv_blocks * options.block_size < options.max_model_len:
        raise EngineConfigError(
            f"simulator options: max-model-len {options.max_model_len} doesn't fit into"
            f" {options.kv_blocks} kv-blocks of {options.block_size} tokens"
        )
    for fault in options.faults:
        if sum(map(bool, (fault.after_requests, fault.after_tokens, fault.after_transfers))) > 1:
            raise EngineConfigError(
                f"simulator options: fault {fault.fault}: give one of after-requests,"
                " after-tokens and after-transfers"
            )
    return options
