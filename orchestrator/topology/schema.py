"""The whole topology: what `dynorch up FILE` is asked to run, as one frozen value.

Two stages of the same value exist. `Topology.model_validate` gives what the file says, table by
table; `load.load` then fills the outer defaults into the roles, the frontend and the processes
(`inherit`), so that whoever asks a role for its model, environment or policies gets the answer and
needn't know where in the file it stood.
"""

from typing import Any, Literal, Self, TypeVar

from pydantic import Field, PrivateAttr

from orchestrator.topology.complaints import Source
from orchestrator.topology.groups import Group
from orchestrator.topology.policies import GpuPolicy, LivenessPolicy, Supervised
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import PYTHON_DESCRIPTION, EngineRole
from orchestrator.topology.table import Names, Table
from orchestrator.topology.units import Duration, PositiveDuration, Size

FRONTEND = "frontend"
"""The reserved role name of the frontend's replicas."""
DRAIN_LEAST_S = 0.1
"""The frontend's drain has an end, but no zero."""

T = TypeVar("T", bound=Table)


class Frontend(Supervised):
    """`[frontend]`: HTTP in, request plane out."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=1024, le=49151, description="Port to listen on, shared by all replicas."
    )
    replicas: int = Field(
        default=1, ge=1, le=64, description="Frontend processes on the same port."
    )
    routing: Literal["round-robin", "least-loaded", "prefix", "kv"] = Field(
        default="least-loaded", description="How a worker is picked for a request."
    )
    body_max_bytes: Size = Field(
        default=32 * 2**20, description="Larger request bodies are answered with 413."
    )
    requests_max: int = Field(
        default=4096, ge=1, description="Open requests; past it the answer is 429 with Retry-After."
    )
    retries: int = Field(
        default=2,
        ge=0,
        le=10,
        description="Times a request is sent elsewhere before its first byte.",
    )
    hold_s: Duration = Field(
        default=30.0,
        description="How long a request may wait while all that serve its model restart because "
        "they were asked to, or crashed while they had it. Who comes after a crash doesn't wait.",
    )
    liveness: LivenessPolicy = Field(
        default_factory=LivenessPolicy,
        description="How it proves that it is alive; what is said of engines doesn't apply.",
    )

    def options(self) -> dict[str, Any]:
        """Plain data for the frontend process: sizes in bytes, durations in seconds.

        What it does with a SIGTERM that no `Drain` came before is a drain of the same length.
        """
        keys = {"host", "port", "routing", "body_max_bytes", "requests_max", "retries", "hold_s"}
        plain = self.model_dump(mode="json", by_alias=True, include=keys)
        return plain | {"drain-timeout": max(self.stop.drain_s, DRAIN_LEAST_S)}


class KvTransfer(Table):
    """`[kv-transfer]`: how KV cache goes from prefill to decode."""

    connector: Literal["nixl"] = Field(description="The engine's connector.")
    buffer_device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="Where transfers begin and end. auto: in GPU memory for engines that have "
        "GPUs, else in main memory.",
    )
    on_failure: Literal["recompute", "fail"] = Field(
        default="recompute",
        description="What decode does when a transfer failed: read the prompt itself, or fail the "
        "request.",
    )
    lease_s: PositiveDuration = Field(
        default=120.0,
        description="How long prefill keeps the blocks of a request that nobody fetches.",
    )
    enforce: bool = Field(
        default=False,
        description="true: without a prefill worker requests are answered with 503. false: decode "
        "reads prompts itself then (degraded, which `status` says).",
    )


class Topology(Supervised):
    """One file."""

    name: str = Field(description="Name of the deployment; the first part of every worker id.")
    model: str | None = Field(
        default=None, min_length=1, description="Model name or path, for the roles that name none."
    )
    served_model_name: Names | None = Field(
        default=None,
        description="Name, or names, that clients ask for; the model's own if not given.",
    )
    python: str | None = Field(default=None, min_length=1, description=PYTHON_DESCRIPTION)
    frontend: Frontend = Field(
        default_factory=Frontend, description="The OpenAI-compatible HTTP server."
    )
    roles: dict[str, EngineRole] = Field(default={}, description="Engine workers, by role name.")
    processes: dict[str, Process] = Field(default={}, description="Plain commands, by name.")
    groups: dict[str, Group] = Field(
        default={}, description="Roles and processes that restart together, by group name."
    )
    kv_transfer: KvTransfer | None = Field(
        default=None, description="KV cache from prefill to decode."
    )
    gpu: GpuPolicy = Field(
        default_factory=GpuPolicy, description="When a GPU counts as free, for whatever needs one."
    )
    liveness: LivenessPolicy = Field(
        default_factory=LivenessPolicy, description="How workers prove that they make progress."
    )
    _source: Source = PrivateAttr(default_factory=Source)

    @property
    def source(self) -> Source:
        """The file and the lines it was read from; no part of the value."""
        return self._source

    def located(self, source: Source) -> Self:
        """Copy that knows where it was written."""
        copy = self.model_copy()
        copy._source = source  # noqa: SLF001
        return copy

    @property
    def has_frontend(self) -> bool:
        """Nothing but plain commands needs no frontend, unless one of them serves models."""
        return bool(self.roles) or any(process.serves for process in self.processes.values())


def inherit(topology: Topology) -> Topology:
    """Fill the outer defaults into roles, frontend and processes."""
    alive = _over(topology.liveness, topology.frontend.liveness)
    update = _inherited(topology, topology.frontend) | {"liveness": alive}
    frontend = topology.frontend.model_copy(update=update)
    roles = {
        name: role.model_copy(update=_inherited(topology, role) | _engine(topology, role))
        for name, role in topology.roles.items()
    }
    processes = {
        name: process.model_copy(
            update=_inherited(topology, process, drains=False)
            | {"gpu": _over(topology.gpu, process.gpu)}
        )
        for name, process in topology.processes.items()
    }
    update = {"frontend": frontend, "roles": roles, "processes": processes}
    return topology.model_copy(update=update)


def _inherited(topology: Topology, table: Supervised, *, drains: bool = True) -> dict[str, Any]:
    stop = _over(topology.stop, table.stop)
    return {
        "env": topology.env | table.env,
        "restart": _over(topology.restart, table.restart),
        "start": _over(topology.start, table.start),
        "stop": stop if drains else stop.model_copy(update={"drain_s": 0.0}),
        "log": _over(topology.log, table.log),
        "tree": table.tree if "tree" in table.model_fields_set else topology.tree,
    }


def _engine(topology: Topology, role: EngineRole) -> dict[str, Any]:
    """What only engines have.

    A role with a model of its own doesn't answer to the name of the topology's.
    """
    served = role.served_model_name
    if served is None and role.model is None:
        served = topology.served_model_name
    return {
        "gpu": _over(topology.gpu, role.gpu),
        "liveness": _over(topology.liveness, role.liveness),
        "model": role.model or topology.model,
        "served_model_name": served,
        "python": role.python or topology.python,
    }


def _over(outer: T, inner: T) -> T:
    """`outer` with the keys that `inner` really gives."""
    return outer.model_copy(update={key: getattr(inner, key) for key in inner.model_fields_set})
