"""What a worker is told when it is forked.

It travels from the daemon through zygote and shim to the worker's entry function as one msgpack
blob over the zygote's socket: never in argv, never in the environment, so `ps` shows no secret.
"""

from typing import Any

import msgspec


class Gang(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's place among `size` members, and where they meet: member 0 listens there.

    The port is new for each incarnation.
    """

    member: int
    size: int
    host: str
    port: int


class Checks(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine worker examines its engine; the daemon judges what it finds.

    `ask_period_s`: a round trip through the engine's processes where no tokens flow.
    `canary_period_s`: one token where nobody wants any; 0 for never.
    """

    ask_period_s: float = 5.0
    canary_period_s: float = 60.0
    canary_timeout_s: float = 30.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one worker needs to run.

    `control` and `events` are the daemon's endpoints; `plane` is the ipc endpoint this worker
    binds (engines only); `state_dir` is private to the incarnation and removed after it.
    `options` belongs to the engine: `vllm serve` flags, the simulator's timing and faults, or the
    frontend's settings. `gang` is None for a replica of one worker. `ports`: those that were chosen
    for it, by name; of several in a row, the first.
    """

    life: str
    kind: str
    control: str
    events: str
    plane: str = ""
    state_dir: str
    model: str = ""
    served_names: list[str] = []
    beat_period_s: float = 1.0
    checks: Checks = Checks()
    options: dict[str, Any] = {}
    gang: Gang | None = None
    ports: dict[str, int] = {}


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(WorkerConfig).decode
