"""How a replica is started, restarted, stopped and logged.

Each table may stand at the top level, as the default for every role and process, and inside one of
them; a key of the inner table wins over the same key of the outer one. The numbers are the
defaults that the supervisor's measurements argue for.
"""

from typing import Literal

from pydantic import Field

from orchestrator.topology.table import Table
from orchestrator.topology.units import Duration, PositiveDuration, Size

STOP_MARGIN_S = 15.0
"""What a vLLM worker needs after its drain to end its engine in order: `stop.grace` covers both."""


OnDependencyRestart = Literal["ignore", "restart"]
ON_DEPENDENCY_RESTART: OnDependencyRestart = Field(
    default="ignore",
    description="What a new life of something in `depends-on` means. ignore: nothing; workers and "
    "frontends learn by themselves where it is now. restart: this one ends too, and starts when "
    "its dependencies are ready again.",
)


VLLM_UTILIZATION = 0.92
"""The part of a GPU that vLLM takes unless told otherwise (vLLM 0.32, config/cache.py)."""

Affinity = Literal["auto", "none"]
AFFINITY: Affinity = Field(
    default="auto",
    description="Which cores and memory it keeps to. auto: those of its GPUs' NUMA node; for vLLM "
    "on the CPU cores of its own. none: all.",
)


def utilization(share: float) -> float:
    """How much of a GPU's memory a worker with this share of it may plan with.

    Less than the share: CUDA itself needs some, and the second of two halves would never find one
    half free.
    """
    return int(share * VLLM_UTILIZATION * 10_000 + 1e-6) / 10_000


class RestartPolicy(Table):
    """Whether and when a replica that ended is started again."""

    policy: Literal["always", "on-failure", "never"] = Field(
        default="always",
        description="When an ended replica starts again. Under `always` an exit with 0 that nobody "
        "asked for is a crash: vLLM exits with 0 when its engine dies.",
    )
    backoff_initial_s: Duration = Field(default=1.0, description="Delay before the second attempt.")
    backoff_factor: float = Field(
        default=2.0, ge=1, description="Growth of the delay from try to try."
    )
    backoff_max_s: Duration = Field(
        default=60.0, description="The delay grows no further than this."
    )
    jitter: float = Field(
        default=0.1, ge=0, lt=1, description="Spread of the delay, as a part of it."
    )
    reset_after_s: Duration = Field(
        default=600.0, description="Ready for this long without a break: the delays begin anew."
    )
    intensity: int = Field(
        default=5,
        ge=0,
        description="Crash budget: more crashes than this, fading by half-life, and the "
        "replica is failed until it is started by hand.",
    )
    half_life_s: PositiveDuration = Field(
        default=1800.0, description="Time in which a past crash counts half."
    )
    attempts: int = Field(default=3, ge=1, description="Starts in a row that may end before ready.")


class StartPolicy(Table):
    """How long a start may take."""

    timeout_s: PositiveDuration = Field(
        default=1800.0, description="A replica that isn't ready by then has failed to start."
    )
    timeout_max_s: PositiveDuration = Field(
        default=7200.0,
        description="No further can a worker that asks for more time (EXTEND_TIMEOUT_USEC) move "
        "the timeout.",
    )
    settle_s: Duration = Field(
        default=1.0,
        description="A command without `ready` is ready when it has lived for so long.",
    )
    stall_event_s: PositiveDuration = Field(
        default=300.0,
        description="A start whose log and progress haven't changed for this long is reported as "
        "stalled (an event, and a word in `status`), and goes on.",
    )
    stop_grace_s: Duration = Field(
        default=5.0,
        description="SIGTERM to tree kill while still starting; short, because vLLM ignores "
        "SIGTERM while it loads.",
    )


class StopPolicy(Table):
    """How a replica is stopped: drain, one SIGTERM, linger, kill of the whole tree."""

    drain_s: Duration = Field(
        default=30.0,
        description="How long old requests may take to finish. Plain commands can't drain.",
    )
    grace_s: Duration = Field(
        default=60.0,
        description="SIGTERM to tree kill. At least drain + 15s for an engine that may be vLLM, at "
        "least drain for the others.",
    )
    grace_max_s: PositiveDuration = Field(
        default=600.0,
        description="No further can a process that asks for more time (EXTEND_TIMEOUT_USEC) move "
        "the end of grace.",
    )
    linger_s: Duration = Field(
        default=2.0, description="How long the rest of the tree may outlive its main process."
    )
    kill_timeout_s: Duration = Field(
        default=10.0,
        description="A tree that isn't empty this long after the kill is reported unkillable.",
    )


class LivenessPolicy(Table):
    """How a ready worker proves that it makes progress, and what it means when it can't.

    `beat`, `ask` and `canary` count from the worker's next start, the rest at once.
    """

    beat_s: PositiveDuration = Field(default=1.0, description="How often a worker beats.")
    misses: int = Field(
        default=5,
        ge=1,
        description="So many beats in a row are missing, or its event loop hasn't turned for that "
        "long: no new requests until that is over.",
    )
    expire_s: PositiveDuration = Field(
        default=30.0, description="No beat, or no turn of its loop, for this long: restart."
    )
    ask_s: PositiveDuration = Field(
        default=5.0,
        description="Where no tokens flow, how often the engine's processes are asked for an "
        "answer.",
    )
    unready_s: PositiveDuration = Field(
        default=15.0,
        description="They owe an answer for this long: no new requests until it comes.",
    )
    hang_s: PositiveDuration = Field(
        default=45.0,
        description="They owe an answer for this long: restart. While requests wait and no process "
        "is stopped: no new requests.",
    )
    busy_s: PositiveDuration = Field(
        default=120.0,
        description="They owe an answer for this long while requests wait: restart. More than the "
        "longest step of the engine, a large prefill or a compilation.",
    )
    stall_s: PositiveDuration = Field(
        default=600.0,
        description="Requests wait in the engine and not one token comes for this long: restart, "
        "even if it answers.",
    )
    canary_s: Duration = Field(
        default=60.0, description="How often an idle engine makes a token as a test; 0s for never."
    )
    canary_timeout_s: PositiveDuration = Field(
        default=30.0, description="How long that token may take."
    )
    canary_misses: int = Field(
        default=3,
        ge=1,
        description="So many tests in a row fail: restart. After the first: no new requests.",
    )


class GpuPolicy(Table):
    """When a GPU counts as free: nothing starts on it before. See docs/operations.md."""

    mode: Literal["exclusive", "shared", "off"] = Field(
        default="exclusive",
        description="exclusive: nobody else holds memory of it. shared: enough is free for us "
        "(gpu-memory-utilization, or the fraction in gpus). off: start without looking.",
    )
    slack_bytes: Size = Field(
        default=512 * 2**20,
        description="exclusive: what may be in use beside the least that was ever seen; at least "
        "1 % of the GPU.",
    )
    samples: int = Field(
        default=2, ge=1, le=100, description="So many looks in a row must find it free."
    )
    interval_s: PositiveDuration = Field(
        default=0.25, description="Time between two looks; nobody looks while nobody waits."
    )
    event_after_s: Duration = Field(
        default=60.0, description="A wait this long is an event, with those who hold the GPU."
    )
    timeout_s: PositiveDuration | None = Field(
        default=None, description="A wait this long has failed (gpu-busy); never if not given."
    )


class LogPolicy(Table):
    """The worker's log file: stdout and stderr together, rotated by size."""

    max_size_bytes: Size = Field(default=50 * 2**20, description="Rotate at this size.")
    backups: int = Field(
        default=5, ge=0, le=100, description="Rotated files kept beside the current one."
    )


class Supervised(Table):
    """What roles, the frontend, processes and, as their default, the whole topology have."""

    env: dict[str, str] = Field(
        default={}, description="Environment variables; inner tables win over outer ones."
    )
    restart: RestartPolicy = Field(
        default_factory=RestartPolicy, description="Whether and when to start again."
    )
    start: StartPolicy = Field(
        default_factory=StartPolicy, description="How long a start may take."
    )
    stop: StopPolicy = Field(default_factory=StopPolicy, description="How to stop.")
    log: LogPolicy = Field(default_factory=LogPolicy, description="The log file.")
    tree: Literal["auto", "walk", "cgroup", "pidns"] = Field(
        default="auto",
        description="What holds a worker's process tree together beside its shim: a control group "
        "(v2, where the daemon may make one), a PID namespace (root only), or nothing. `auto`: a "
        "control group if it can be had.",
    )
