"""Engine roles: models, engine flags, faults, and what KV-aware routing needs."""

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.topology.checks.pairs import misspelt
from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.owned import VLLM_FLAGS
from orchestrator.topology.roles import Fault
from orchestrator.topology.schema import Topology

_FLAG = re.compile(r"[a-z][a-z0-9-]*(\.[A-Za-z0-9_.-]+)?")
_FAULT_KEYS = {
    "size_bytes": ("bytes", "allocate", 'bytes = "1GiB"'),
    "delay_s": ("delay", "slow-start", 'delay = "30s"'),
}
"""Attribute -> its key, the one fault that has and needs it, and an example."""
_MEMORY_KEYS = ("max-model-len", "kv-blocks", "block-size")


def models(topology: Topology) -> Iterator[Finding]:
    """Every role serves some model."""
    lacking = [name for name, role in topology.roles.items() if role.model is None]
    right = 'add model = "Qwen/Qwen3-0.6B"'
    if lacking and len(lacking) == len(topology.roles):
        each = tuple(("roles", name, "model") for name in lacking)
        yield Finding(("model",), "no model is named", right, (("model",), *each))
        return
    for name in lacking:
        uses = (("roles", name, "model"), ("model",))
        yield Finding(("roles", name), "no model is named", f"{right} here or at the top", uses)


def served_names(topology: Topology) -> Iterator[Finding]:
    """Check that a name which clients ask for means one model."""
    meant: dict[str, tuple[str, str | None]] = {}
    halves = set(misspelt(topology))
    for name, role in topology.roles.items():
        if role.model is None:
            continue
        for served in role.served_names:
            other, model = meant.setdefault(served, (name, role.model))
            if model != role.model and not halves & {(name, other), (other, name)}:
                wrong = f'"{served}" is {model} in role {other} and {role.model} here'
                right = "give each model a served-model-name of its own"
                path = ("roles", name, "served-model-name")
                yield Finding(path, wrong, right, (("roles", other, "served-model-name"),))


def flags(topology: Topology) -> Iterator[Finding]:
    """Say what can be said about vLLM's flags without vLLM: spelling, types, and which are ours."""
    for name, role in topology.roles.items():
        for flag, value in role.vllm.items():
            path = ("roles", name, "vllm", flag)
            plain = flag.lstrip("-").replace("_", "-")
            positive = plain.removeprefix("no-")
            if plain in VLLM_FLAGS or positive in VLLM_FLAGS:
                why, _, right = VLLM_FLAGS.get(plain, VLLM_FLAGS.get(positive, "")).partition("; ")
                yield Finding(path, f"not a flag to set here: {why}", right)
            elif not _FLAG.fullmatch(flag):
                yield Finding(path, "this isn't how a flag is written here", f"write {plain}")
            elif not _is_plain(value):
                right = "write a string, a number, true or false, a list or a table of these"
                yield Finding(path, "a flag can't have this value", right)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    if isinstance(value, list):
        return all(_is_plain(each) for each in value)
    return isinstance(value, str | int | float)


def simulator(topology: Topology) -> Iterator[Finding]:
    """Check the simulated engine's memory, and that each fault has its keys and no others."""
    for name, role in topology.roles.items():
        path: Path = ("roles", name, "sim")
        sim = role.sim
        tokens = sim.kv_blocks * sim.block_size
        if tokens < sim.max_model_len:
            wrong = f"{sim.kv_blocks} blocks of {sim.block_size} can't hold max-model-len "
            wrong += f"{sim.max_model_len}"
            keys = [key for key in _MEMORY_KEYS if key.replace("-", "_") in sim.model_fields_set]
            uses = tuple((*path, key) for key in _MEMORY_KEYS)
            yield Finding((*path, *keys[:1]), wrong, f"write max-model-len = {tokens}", uses)
        for index, fault in enumerate(sim.faults):
            for keys, wrong, right in _fault(fault):
                yield Finding((*path, "faults", index, *keys), wrong, right)


def _fault(fault: Fault) -> Iterator[tuple[list[str], str, str]]:
    for attribute, (key, owner, example) in _FAULT_KEYS.items():
        given = getattr(fault, attribute) is not None
        if given and fault.fault != owner:
            wrong = f'only fault = "{owner}" has this key'
            yield [key], wrong, f'leave it out, or write fault = "{owner}"'
        if not given and fault.fault == owner:
            yield [], f'fault = "{owner}" needs {key}', f"add {example}"
    if fault.fault == "log" and not fault.line:
        yield [], 'fault = "log" needs line', 'add line = "CUDA out of memory"'
    if fault.signal is not None and fault.fault != "crash":
        yield ["signal"], 'only fault = "crash" has this key', "leave it out"
    if fault.after_tokens and fault.after_requests:
        yield ["after-tokens"], "it can't wait for requests and tokens both", "leave one out"
    if fault.after_transfers and (fault.after_requests or fault.after_tokens):
        yield ["after-transfers"], "it can't wait for transfers and another count", "leave one out"


def kv_routing(topology: Topology) -> Iterator[Finding]:
    """Check what the KV-aware router needs: prefix caching, and equal blocks within a model."""
    if topology.frontend.routing != "kv":
        return
    sizes: dict[tuple[str | None, str], tuple[str, object]] = {}
    for name, role in topology.roles.items():
        path = ("roles", name, "vllm")
        if _caching_is_off(role.vllm):
            wrong = (
                'without prefix caching there are no KV events, and routing = "kv" lives on them'
            )
            key = "no-enable-prefix-caching"
            key = key if key in role.vllm else "enable-prefix-caching"
            yield Finding((*path, key), wrong, "leave it out", (("frontend", "routing"),))
        simulated = role.engine == "sim"
        size = role.sim.block_size if simulated else role.vllm.get("block-size")
        table = "sim" if simulated else "vllm"
        other, known = sizes.setdefault((role.model, table), (name, size))
        if size != known:
            wrong = f"block size {size} here, {known} in role {other}, and the router counts blocks"
            right = "write the same block-size in both, or in neither"
            uses = (("frontend", "routing"), ("roles", other, table, "block-size"))
            yield Finding(("roles", name, table, "block-size"), wrong, right, uses)


def _caching_is_off(flags: dict[str, Any]) -> bool:
    if flags.get("no-enable-prefix-caching") is True:
        return True
    return flags.get("enable-prefix-caching") is False
