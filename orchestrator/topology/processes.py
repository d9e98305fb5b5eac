"""Plain commands that are supervised beside the workers: a metrics server, a cache, any server."""

from pydantic import Field

from orchestrator.topology.policies import (
    AFFINITY,
    ON_DEPENDENCY_RESTART,
    Affinity,
    GpuPolicy,
    OnDependencyRestart,
    Supervised,
)
from orchestrator.topology.probes import Command, Liveness, Origin, Readiness
from orchestrator.topology.table import DEPENDS_ON, Dependencies, Gpus, Names, Table
from orchestrator.topology.units import PositiveDuration


class Serves(Table):
    """`serves`, of a plain command that is an OpenAI server: the frontend sends it requests."""

    url: Origin = Field(description="Where it listens, on this machine: scheme, host and port.")
    models: Names = Field(description="Model, or models, that it is asked for.")


class Process(Supervised):
    """`[processes.NAME]`."""

    command: Command = Field(description="Program and arguments; no shell reads it.")
    cwd: str | None = Field(
        default=None,
        min_length=1,
        description="Working directory; the topology file's if not given.",
    )
    ready: Readiness | None = Field(
        default=None,
        description="How it shows that it is ready. If not given: when it has lived for "
        "`start.settle`.",
    )
    live: Liveness | None = Field(
        default=None, description="When it is so stuck that it must be restarted; never if absent."
    )
    serves: Serves | None = Field(
        default=None,
        description="For an OpenAI server: the frontend sends it the requests for these models "
        "while it is ready.",
    )
    watchdog_s: PositiveDuration | None = Field(
        default=None,
        description="A ready process that doesn't say WATCHDOG=1 on $NOTIFY_SOCKET for so long is "
        "restarted. It finds the time in $WATCHDOG_USEC, as for systemd.",
    )
    depends_on: Dependencies = DEPENDS_ON
    on_dependency_restart: OnDependencyRestart = ON_DEPENDENCY_RESTART
    gpus: Gpus | None = Field(
        default=None,
        description="GPUs it gets: a count, a fraction of one (shared), or a list of indices or "
        "UUIDs. None if not given.",
    )
    affinity: Affinity = AFFINITY
    gpu: GpuPolicy = Field(default_factory=GpuPolicy, description="When its GPUs count as free.")
    oneshot: bool = Field(
        default=False,
        description="Runs once and ends: what depends on it starts when it has exited with 0. It "
        "may take a day, unless `start.timeout` says otherwise.",
    )
