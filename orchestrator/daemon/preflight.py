"""What only an engine's own environment can say about a file, asked before anything is started.

Each interpreter that workers are to run in must have what they need, which its zygote finds out;
and vLLM's own parser reads the flags of each role in a fork of that zygote. The zygotes are kept,
so the workers that start next don't pay for the imports again.
"""

import asyncio
from collections.abc import Callable, Iterator

import msgspec

from orchestrator.core.plan import Plan, PlannedWorker
from orchestrator.daemon.births import lineage
from orchestrator.daemon.checks import Checks
from orchestrator.host.zygote_link import ZygoteError, ZygoteLink
from orchestrator.topology.complaints import Finding, Path
from orchestrator.topology.schema import Topology

ENTRY = "workers.vllm.verdict:main"
LIMIT_S = 60.0
"""Parsing takes a second or two; a plugin that it loads may take longer."""
NEAR = "did you mean {}?"
HELP = "`vllm serve --help=all` lists what there is"


class Objection(msgspec.Struct, frozen=True):
    """As `workers.vllm.verdict` says it."""

    wrong: str
    flag: str = ""
    near: str = ""
    dense: bool = False


_read = msgspec.json.Decoder(list[Objection]).decode


class Preflight:
    """Asks zygotes, and forks of them."""

    def __init__(self, zygote: Callable[[str, str], ZygoteLink], checks: Checks) -> None:
        self._zygote = zygote
        self._checks = checks

    async def complaints(self, topology: Topology, plan: Plan, cwd: str) -> list[str]:
        """Everything that is wrong, as lines; empty when it may start."""
        asked: dict[str, PlannedWorker] = {}
        for worker in plan.workers:
            if worker.engine and (worker.python is not None or worker.engine == "vllm"):
                asked.setdefault(worker.replica.role, worker)
        found = await asyncio.gather(
            *(self._role(topology, role, worker, cwd) for role, worker in asked.items())
        )
        located = [topology.source.complaint(finding) for findings in found for finding in findings]
        return list(dict.fromkeys(str(each) for each in sorted(located, key=lambda one: one.line)))

    async def _role(
        self, topology: Topology, role: str, worker: PlannedWorker, cwd: str
    ) -> list[Finding]:
        ranks = topology.roles[role].members
        question = {
            "model": worker.model,
            "served_names": worker.served_names,
            "options": {k: v for k, v in worker.options.items() if k != "data-parallel-rank"},
            "ranks": ranks,
        }
        try:
            zygote = self._zygote(*lineage(worker))
            await zygote.until_ready()
            if worker.engine != "vllm":
                return []
            blob = msgspec.json.encode(question)
            answer = await self._checks.question(
                zygote, ENTRY, blob, planned=worker, cwd=cwd, limit_s=LIMIT_S
            )
        except (OSError, ZygoteError) as error:
            right = "name one whose environment has it, or leave python out"
            if worker.python is None:
                right = "install it there, or name another interpreter with `python`"
            return [Finding(_python_of(topology, role), str(error), right)]
        # No answer: the parser itself came to grief, and the worker's own log will tell of it.
        said = _read(answer) if answer else []
        return [finding for each in said for finding in _findings(role, each, ranks)]


def _findings(role: str, said: Objection, ranks: int) -> Iterator[Finding]:
    if said.dense:
        path: Path = ("roles", role, "data-parallel")
        yield Finding(path, said.wrong, f"write replicas = {ranks} instead")
        return
    path = ("roles", role, "vllm", *([said.flag] if said.flag else []))
    yield Finding(path, said.wrong, NEAR.format(said.near) if said.near else HELP)


def _python_of(topology: Topology, role: str) -> Path:
    """Where the file says which interpreter a role's workers run in."""
    own: Path = ("roles", role, "python")
    return own if own in topology.source.lines or topology.python is None else ("python",)
