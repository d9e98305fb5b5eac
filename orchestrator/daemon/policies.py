"""From the operator's tables to the core's policy: names change, meanings don't."""

from msgspec.structs import replace

from orchestrator.core import policy
from orchestrator.core.plan import PlannedWorker
from orchestrator.core.state import Hold
from orchestrator.topology.policies import (
    GpuPolicy,
    LivenessPolicy,
    RestartPolicy,
    StartPolicy,
    StopPolicy,
    utilization,
)
from orchestrator.topology.processes import Process
from orchestrator.topology.roles import EngineRole
from orchestrator.topology.schema import Frontend

ONESHOT_S = 86_400.0
"""How long a oneshot may work where the file doesn't say it: every wait has an end."""


def _policy(
    restart: RestartPolicy,
    start: StartPolicy,
    stop: StopPolicy,
    **nature: bool | int | tuple[Hold, ...] | policy.Lease | policy.Liveness,
) -> policy.Policy:
    return policy.Policy(
        backoff=policy.Backoff(
            initial_s=restart.backoff_initial_s,
            factor=restart.backoff_factor,
            max_s=restart.backoff_max_s,
            jitter=restart.jitter,
            reset_after_s=restart.reset_after_s,
        ),
        intensity=policy.Intensity(failures_max=restart.intensity, half_life_s=restart.half_life_s),
        start=policy.Start(
            timeout_s=start.timeout_s,
            timeout_max_s=max(start.timeout_s, start.timeout_max_s),
            stop_grace_s=start.stop_grace_s,
            settle_s=start.settle_s,
            stall_event_s=start.stall_event_s,
        ),
        stop=policy.Stop(
            drain_s=stop.drain_s,
            grace_s=stop.grace_s,
            grace_max_s=max(stop.grace_s, stop.grace_max_s),
            linger_s=stop.linger_s,
            kill_timeout_s=stop.kill_timeout_s,
        ),
        retries=policy.Retries(start_crash=restart.attempts - 1),
        restart=policy.Restart(restart.policy),
        **nature,  # type: ignore[arg-type]
    )


def _liveness(alive: LivenessPolicy) -> dict[str, policy.Lease | policy.Liveness]:
    """One table of the file, two judges: of silence, and of what is said."""
    return {
        "lease": policy.Lease(
            period_s=alive.beat_s, misses_max=alive.misses, expire_s=alive.expire_s
        ),
        "liveness": policy.Liveness(
            ask_period_s=alive.ask_s,
            unready_s=alive.unready_s,
            hang_s=alive.hang_s,
            busy_s=alive.busy_s,
            stall_s=alive.stall_s,
            canary_period_s=alive.canary_s,
            canary_timeout_s=alive.canary_timeout_s,
            canary_misses_max=alive.canary_misses,
        ),
    }


def of_role(role: EngineRole, *, depends: bool) -> policy.Policy:
    """An engine: says when it is ready, and can drain. `depends`: it has needs."""
    return _policy(
        role.restart, role.start, role.stop,
        **_liveness(role.liveness),
        members=role.members,
        holds=(Hold.DEPENDENCY,) if depends else (),
    )  # fmt: skip


def of_frontend(frontend: Frontend) -> policy.Policy:
    """The frontend says when it is ready, and can drain."""
    alive = _liveness(frontend.liveness)
    return _policy(frontend.restart, frontend.start, frontend.stop, **alive)


def of_process(process: Process, *, depends: bool) -> policy.Policy:
    """A plain command: ready when its probe says so, or when it has settled; can't drain.

    `depends`: it has needs. A oneshot never is ready: it works until it has ended. That may take
    long, and a stop isn't hurried.
    """
    start = process.start
    if process.oneshot:
        limit_s = start.timeout_s if "timeout_s" in start.model_fields_set else ONESHOT_S
        longest_s = max(start.stop_grace_s, process.stop.grace_s)
        start = start.model_copy(update={"timeout_s": limit_s, "stop_grace_s": longest_s})
    return _policy(
        process.restart, start, process.stop,
        has_readiness=process.oneshot or process.ready is not None, drains=False,
        oneshot=process.oneshot,
        holds=(Hold.DEPENDENCY,) if depends else (),
    )  # fmt: skip


def with_gpus(
    plain: policy.Policy, gpu: GpuPolicy, members: tuple[PlannedWorker, ...]
) -> policy.Policy:
    """Let a replica wait for the GPUs that its members were given, if they were given any."""
    if gpu.mode == "off" or not any(member.gpu_uuids for member in members):
        return plain
    part = members[0].gpu_share
    asked = members[0].options.get("gpu-memory-utilization")
    share = asked if isinstance(asked, int | float) else utilization(part)
    return replace(
        plain,
        holds=(*plain.holds, Hold.GPU),
        gpu=policy.Gpu(
            mode=policy.GpuMode.SHARED if part < 1 else policy.GpuMode(gpu.mode),
            share=float(share),
            slack_bytes=gpu.slack_bytes,
            samples=gpu.samples,
            interval_s=gpu.interval_s,
            event_after_s=gpu.event_after_s,
            timeout_s=gpu.timeout_s,
        ),
    )
