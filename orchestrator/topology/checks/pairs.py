"""The two halves of a disaggregated deployment: what they must have in common to exchange KV cache.

vLLM's NIXL connector compares a digest of the model's name as it was written, of types and of the
shape of a block; halves that differ refuse each other with the first request, after both have
loaded their weights. Here they are told before.
"""

from collections.abc import Iterator

from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import Topology

SHARED_FLAGS = ("block-size", "dtype", "kv-cache-dtype", "quantization", "revision")
"""Flags of which both halves must have the same, or none."""
_EXAMPLE = 'add [kv-transfer] with connector = "nixl"'


def misspelt(topology: Topology) -> list[tuple[str, str]]:
    """Prefill and decode roles that serve one name, and call its model by different ones."""
    return [
        (prefill, decode)
        for prefill, one in topology.roles.items()
        for decode, other in topology.roles.items()
        if (one.kind, other.kind) == ("prefill", "decode")
        and one.model and other.model and one.model != other.model
        and set(one.served_names) & set(other.served_names)
    ]  # fmt: skip


def one_model(topology: Topology) -> Iterator[Finding]:
    """Both halves of a pair are given the same string as their model."""
    for prefill, decode in misspelt(topology):
        models = topology.roles[decode].model, topology.roles[prefill].model
        wrong = f"{models[0]} here, {models[1]} in role {prefill}: NIXL compares the words"
        uses: tuple[Path, ...] = (("roles", prefill, "model"), ("model",))
        yield Finding(("roles", decode, "model"), wrong, "write the same in both", uses)


def both_there(topology: Topology) -> Iterator[Finding]:
    """Prefill and decode come in pairs, for the same model, with a way for the KV cache."""
    kinds: dict[str, dict[str | None, str]] = {"prefill": {}, "decode": {}}
    uses = tuple(("roles", name, key) for name in topology.roles for key in ("kind", "model"))
    told = {name for pair in misspelt(topology) for name in pair}
    for name, role in topology.roles.items():
        if role.kind in kinds:
            kinds[role.kind].setdefault(role.model, name)
    alone = {
        kind: [
            name for model, name in kinds[kind].items()
            if model not in kinds[other] and name not in told
        ]
        for kind, other in (("prefill", "decode"), ("decode", "prefill"))
    }  # fmt: skip
    # Halves that serve different models are one mistake; the prefill half tells of it.
    del alone["decode"][: len(alone["prefill"])]
    for kind, other in (("prefill", "decode"), ("decode", "prefill")):
        for name in alone[kind]:
            model = topology.roles[name].model or "its model"
            wrong = f"no {other} role serves {model}, so no request can pass"
            right = f'add a role with kind = "{other}", or write kind = "aggregated"'
            yield Finding(("roles", name, "kind"), wrong, right, uses)
    paired = [name for roles in kinds.values() for name in roles.values()]
    if paired and topology.kv_transfer is None:
        wrong = f"nothing says how KV cache goes from prefill to decode (role {paired[0]})"
        yield Finding(("kv-transfer",), wrong, _EXAMPLE, (*uses, ("kv-transfer",)))
    if not paired and topology.kv_transfer is not None:
        right = "add prefill and decode roles, or leave the table out"
        yield Finding(("kv-transfer",), "no role would use it", right, (*uses, ("roles",)))


def same_blocks(topology: Topology) -> Iterator[Finding]:
    """What one half writes the other reads: blocks of the same shape and type."""
    for name, role in topology.roles.items():
        if role.kind != "decode":
            continue
        for other, half in topology.roles.items():
            if half.kind == "prefill" and half.model == role.model:
                yield from _differences(name, role, other, half)


def _differences(name: str, role: EngineRole, other: str, half: EngineRole) -> Iterator[Finding]:
    found = []
    if "sim" not in {role.engine, half.engine}:
        found += [("vllm", flag, role.vllm.get(flag), half.vllm.get(flag)) for flag in SHARED_FLAGS]
    if "vllm" not in {role.engine, half.engine}:
        found.append(("sim", "block-size", role.sim.block_size, half.sim.block_size))
    for table, key, mine, its in found:
        if mine == its:
            continue
        here: Path = ("roles", name, table, key)
        there: Path = ("roles", other, table, key)
        written = "block_size" in role.sim.model_fields_set if table == "sim" else mine is not None
        wrong = f"{_said(mine)} in role {name} and {_said(its)} in role {other}, which hands over"
        right = "write the same in both, or in neither"
        yield Finding(here if written else there, f"{wrong} to it", right, (here, there))


def _said(value: object) -> str:
    return "none" if value is None else str(value)


def buffers(topology: Topology) -> Iterator[Finding]:
    """Transfers can't begin in the memory of a GPU that an engine doesn't have."""
    transfer = topology.kv_transfer
    if transfer is None or transfer.buffer_device != "cuda":
        return
    for name, role in topology.roles.items():
        if role.kind != "aggregated" and role.gpus == 0:
            wrong = f"role {name} has no GPU whose memory transfers could begin in"
            right = 'write buffer-device = "auto", or leave it out'
            uses: tuple[Path, ...] = (("roles", name, "gpus"), ("roles", name, "kind"))
            yield Finding(("kv-transfer", "buffer-device"), wrong, right, uses)
