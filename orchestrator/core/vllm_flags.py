"""A role's `vllm = {...}` table as the command line of `vllm serve`.

The workers don't run that command (they host vLLM in process), but they hand the same arguments
to vLLM's own parser, and `plan` prints them, so that anyone can start the same engine by hand.
"""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.core import kv_transfer
from orchestrator.topology.policies import utilization
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import KvTransfer

RENDEZVOUS = "rendezvous"
"""The port at which a gang's members meet, in `PlannedWorker.ports`."""


def role_flags(
    role: EngineRole,
    member: int,
    transfer: KvTransfer | None = None,
    *,
    has_gpus: bool = True,
    share: float = 1.0,
) -> dict[str, Any]:
    """Join the role's flags with those that other keys stand for, sorted by name.

    `member` is the worker's data-parallel rank; `transfer`: the topology's `[kv-transfer]`;
    `share`: how much it has of its GPU.
    """
    flags = dict(role.vllm)
    if has_gpus and share < 1:
        flags.setdefault("gpu-memory-utilization", utilization(share))
    if role.served_model_name:
        flags["served-model-name"] = list(role.served_model_name)
    if role.tensor_parallel_size > 1:
        flags["tensor-parallel-size"] = role.tensor_parallel_size
    if role.pipeline_parallel > 1:
        flags["pipeline-parallel-size"] = role.pipeline_parallel
    if role.data_parallel > 1:
        flags |= _ranks(role, member)
    if role.expert_parallel:
        flags["enable-expert-parallel"] = True
    if transfer is not None and role.kind in kv_transfer.KINDS:
        flags["kv-transfer-config"] = kv_transfer.vllm_config(
            transfer, role.kind, has_gpus=has_gpus
        )
    return dict(sorted(flags.items()))


def _ranks(role: EngineRole, member: int) -> dict[str, Any]:
    """One rank that others balance, or all ranks in one process, balanced by vLLM.

    Flags must be the same on all ranks, but for the rank itself: vLLM compares them. Where they
    meet, the worker adds.
    """
    flags: dict[str, Any] = {"data-parallel-size": role.data_parallel}
    if role.members > 1:
        return flags | {"data-parallel-rank": member}
    flags["data-parallel-size-local"] = role.data_parallel
    if role.data_parallel_balancing == "hybrid":
        flags["data-parallel-hybrid-lb"] = True
    return flags


def flag_argv(flags: Mapping[str, Any]) -> list[str]:
    """Turn `{a = true, b = false, c = [1, 2], d = {...}}` into `--a --no-b --c 1 2 --d {...}`."""
    argv: list[str] = []
    for name, value in flags.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            argv += [f"--{name}", *(_text(each) for each in value)]
        else:
            argv += [f"--{name}", _text(value)]
    return argv


def serve_argv(model: str, flags: Mapping[str, Any]) -> list[str]:
    """Everything behind `vllm`: the words that start the same engine by hand."""
    return ["serve", model, *flag_argv(flags)]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | bool):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return str(value)
