"""Engine roles: a kind of worker, how many, how parallel, on which GPUs, with which engine."""

from typing import Any, Literal

from pydantic import Field

from orchestrator.topology.policies import (
    AFFINITY,
    ON_DEPENDENCY_RESTART,
    Affinity,
    GpuPolicy,
    LivenessPolicy,
    OnDependencyRestart,
    Supervised,
)
from orchestrator.topology.table import DEPENDS_ON, Dependencies, Gpus, Names, Table
from orchestrator.topology.units import Duration, Size

Kind = Literal["aggregated", "prefill", "decode"]
EngineChoice = Literal["auto", "vllm", "sim"]

PYTHON_DESCRIPTION = (
    "Interpreter that the workers run in; its environment has the engine, and ours need not. Only "
    "the code of our workers is added to what can be imported there."
)


class Fault(Table):
    """A failure that the simulated engine plays, once per life.

    It strikes during the start, or with the Nth request, or when N tokens were produced, or in the
    middle of the Nth transfer of KV blocks, on the side that has it.
    """

    fault: Literal[
        "crash",
        "exit-0",
        "hang",
        "engine-hang",
        "engine-stall",
        "engine-death",
        "slow-start",
        "ignore-term",
        "leak-child",
        "leak-daemon",
        "allocate",
        "log",
        "drop-answer",
        "transfer-fail",
        "transfer-stall",
    ] = Field(
        description="What goes wrong. drop-answer: a request is served and never answered; "
        "transfer-fail, transfer-stall: KV blocks that decode fetches don't come, or never do."
    )
    after_requests: int | None = Field(
        default=None, ge=1, description="With this request; during the start if not given."
    )
    after_tokens: int | None = Field(
        default=None, ge=1, description="When so many tokens were produced."
    )
    after_transfers: int | None = Field(
        default=None, ge=1, description="In the middle of this transfer of KV blocks."
    )
    times: int | None = Field(
        default=None, ge=1, description="In how many incarnations; in all of them if not given."
    )
    member: int | None = Field(
        default=None, ge=0, description="In this member of a gang; in all of them if not given."
    )
    line: str | None = Field(default=None, description="A line to print when it strikes.")
    size_bytes: Size | None = Field(
        default=None, alias="bytes", description="allocate: how much memory."
    )
    delay_s: Duration | None = Field(
        default=None, serialization_alias="seconds", description="slow-start: how much slower."
    )
    signal: int | None = Field(default=None, ge=1, le=64, description="crash: die by this signal.")


class Sim(Table):
    """The simulated engine's timing and faults."""

    startup_s: Duration = Field(default=0.2, description="Time from the fork to ready.")
    prefill_rate: float = Field(default=20_000.0, gt=0, description="Prompt tokens per second.")
    transfer_rate: float = Field(
        default=1_000_000.0,
        gt=0,
        description="Prompt tokens per second that come from prefill to decode.",
    )
    step_s: Duration = Field(
        default=0.01, description="Time of one decode step of the whole batch."
    )
    batch_max: int = Field(
        default=256, ge=1, description="Requests decoded together; the rest wait."
    )
    kv_blocks: int = Field(default=16_384, ge=1, description="KV-cache blocks.")
    block_size: int = Field(default=16, ge=1, description="Tokens per KV-cache block.")
    max_model_len: int = Field(
        default=32_768, ge=2, description="Prompt and answer together, in tokens."
    )
    today: str | None = Field(
        default=None,
        description="Date that its chat template prints. Prefill and decode with different ones "
        "are a request at midnight.",
    )
    faults: tuple[Fault, ...] = Field(default=(), strict=False, description="Failures to play.")
    pinned: bool = Field(
        default=False,
        description="Where there are GPUs: be placed on them and wait for them like a real engine, "
        "to rehearse that. It uses none of them.",
    )

    def options(self) -> dict[str, Any]:
        """Plain data as the simulated engine takes it: durations in seconds, sizes in bytes."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"pinned"})


class EngineRole(Supervised):
    """`[roles.NAME]`."""

    kind: Kind = Field(default="aggregated", description="What the workers do with a request.")
    model: str | None = Field(default=None, min_length=1, description="Model name or path.")
    served_model_name: Names | None = Field(
        default=None,
        description="Name, or names, that clients ask for; the model's own if not given.",
    )
    replicas: int = Field(default=1, ge=1, le=1000, description="Complete copies of this role.")
    gpus: Gpus | None = Field(
        default=None,
        description="GPUs per worker: a count, a fraction of one (shared), or a list of indices or "
        "UUIDs that is dealt to the workers in order. What the parallel sizes need if not given.",
    )
    engine: EngineChoice = Field(
        default="auto", description="auto: vLLM where a GPU is present, else the simulated engine."
    )
    affinity: Affinity = AFFINITY
    vllm: dict[str, Any] = Field(
        default={},
        description="Any `vllm serve` flag, without dashes in front, checked by vLLM itself.",
    )
    gpu: GpuPolicy = Field(default_factory=GpuPolicy, description="When its GPUs count as free.")
    liveness: LivenessPolicy = Field(
        default_factory=LivenessPolicy, description="How it proves that it makes progress."
    )
    sim: Sim = Field(default_factory=Sim, description="The simulated engine's timing and faults.")
    tensor_parallel: int | None = Field(
        default=None,
        ge=1,
        description="GPUs that hold one layer together; GPUs per worker if not given.",
    )
    pipeline_parallel: int = Field(
        default=1, ge=1, description="Stages that the layers are cut into."
    )
    data_parallel: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Ranks, each a worker of its own, that start, serve, fail and stop as one "
        "replica: a gang. vLLM needs a mixture-of-experts model for that; use replicas for others.",
    )
    data_parallel_balancing: Literal["external", "internal", "hybrid"] = Field(
        default="external",
        description="Who deals requests to the ranks. external: the frontend, and each rank is a "
        "worker of its own. internal, hybrid: vLLM, and one worker holds all ranks and their GPUs.",
    )
    expert_parallel: bool = Field(
        default=False,
        description="Spread experts over all ranks. The simulated engine has no experts.",
    )
    depends_on: Dependencies = DEPENDS_ON
    on_dependency_restart: OnDependencyRestart = ON_DEPENDENCY_RESTART
    python: str | None = Field(default=None, min_length=1, description=PYTHON_DESCRIPTION)

    @property
    def members(self) -> int:
        """Workers per replica."""
        return self.data_parallel if self.data_parallel_balancing == "external" else 1

    @property
    def ranks(self) -> int:
        """Data-parallel ranks per worker."""
        return self.data_parallel // self.members

    @property
    def workers(self) -> int:
        """Workers of all replicas."""
        return self.replicas * self.members

    @property
    def gpus_per_worker(self) -> int | float:
        """GPUs that one worker gets when its engine uses GPUs: whole ones, or a fraction of one."""
        if self.gpus is None:
            return (self.tensor_parallel or 1) * self.pipeline_parallel * self.ranks
        if isinstance(self.gpus, tuple):
            return len(self.gpus) // self.workers
        return self.gpus

    @property
    def tensor_parallel_size(self) -> int:
        """As written, or what uses all of the worker's GPUs."""
        if self.tensor_parallel is not None:
            return self.tensor_parallel
        return max(1, int(self.gpus_per_worker) // (self.pipeline_parallel * self.ranks))

    @property
    def served_names(self) -> tuple[str, ...]:
        """What clients may ask for."""
        assert self.model is not None, "the loader fills in the topology's model"
        return self.served_model_name or (self.model,)
