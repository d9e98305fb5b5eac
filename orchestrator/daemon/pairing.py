"""Whether prefill and decode are both there, said in one sentence if not.

A decode worker without a prefill worker still answers: it reads the prompts itself, or is
forbidden to (`[kv-transfer] enforce`), and then the answer is 503. Either way the topology doesn't
do what its file says, even if every replica that is wanted is up.
"""

from orchestrator.daemon.unit import Unit


def gap(units: list[Unit]) -> str:
    """Say that routable decode workers have no routable prefill worker; empty if all is well."""
    served = _names(units, "decode")
    missing = sorted(served - _names(units, "prefill"))
    if not missing:
        return ""
    models = ", ".join(missing)
    then = "requests get 503" if _enforced(units) else "decode reads prompts itself"
    absent = [unit for unit in units if unit.spec.kind == "prefill" and not unit.routable]
    why = f": {absent[0].id} is {absent[0].state.phase.value}: {absent[0].state.reason}"
    return f"no prefill worker for {models}, so {then}{why if absent else ''}"


def _names(units: list[Unit], kind: str) -> set[str]:
    return {
        name
        for unit in units
        if unit.spec.kind == kind and unit.routable
        for name in unit.spec.members[0].served_names
    }


def _enforced(units: list[Unit]) -> bool:
    options = [unit.spec.members[0].options for unit in units if unit.spec.kind == "frontend"]
    return any(one.get("kv-transfer", {}).get("enforce") for one in options)
