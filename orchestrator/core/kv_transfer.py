"""What `[kv-transfer]` means for each process: vLLM's flag, the simulator's and frontend's options.

Prefill produces KV cache, decode consumes it; both roles are told of the same lease. An engine's id
is never set: the engine makes up a new one in each life, and that is how a reference to blocks of
an earlier life is found to be stale.
"""

from typing import Any

from orchestrator.topology.schema import KvTransfer

KINDS = {"prefill": "kv_producer", "decode": "kv_consumer"}
"""The kinds of role that take part, and what vLLM calls their parts."""
CONNECTORS = {"nixl": "NixlConnector"}


def vllm_config(transfer: KvTransfer, kind: str, *, has_gpus: bool) -> dict[str, Any]:
    """Return the value of `--kv-transfer-config`."""
    device = transfer.buffer_device
    if device == "auto":
        device = "cuda" if has_gpus else "cpu"
    return {
        "kv_connector": CONNECTORS[transfer.connector],
        "kv_role": KINDS[kind],
        "kv_buffer_device": device,
        "kv_load_failure_policy": transfer.on_failure,
        "kv_connector_extra_config": {"kv_lease_duration": max(1, round(transfer.lease_s))},
    }


def sim_options(transfer: KvTransfer | None, kind: str) -> dict[str, Any]:
    """Return what the simulated engine of a prefill or decode role is told."""
    if transfer is None or kind not in KINDS:
        return {}
    return {"kv-transfer": {"lease": transfer.lease_s, "on-failure": transfer.on_failure}}


def frontend_options(transfer: KvTransfer | None) -> dict[str, Any]:
    """Return what the frontend is told; nothing where no request is cut in two."""
    if transfer is None:
        return {}
    return {"kv-transfer": {"lease": transfer.lease_s, "enforce": transfer.enforce}}
