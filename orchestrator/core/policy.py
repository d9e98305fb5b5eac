"""What the operator's file decided about one replica: durations, limits, and its nature.

All of it has a default that is right for a vLLM worker; plain commands differ in their nature
(`has_readiness`, `drains`, `oneshot`), not in their rules. The replica machine reads a policy and
never changes it, so an edited value takes effect with the next event and restarts nothing.
"""

import enum

import msgspec

from orchestrator.core.reasons import Cause
from orchestrator.core.state import Hold


class Restart(enum.Enum):
    """When an unasked end is followed by a new start.

    ALWAYS: an unasked exit with 0 is a crash too (vLLM exits with 0 when its engine dies).
    ON_FAILURE: exit 0 completes the replica. NEVER: exit 0 completes it, anything else fails it.
    """

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """The pause after the n-th failed run in a row: initial x factor^(n-1), at most `max_s`.

    `jitter` spreads it by that share in both directions. A run that was ready for `reset_after_s`
    ends the row; the first failure after it is retried without any delay. `slow_s`: the least that
    is waited where memory or a network elsewhere must come back first.
    """

    initial_s: float = 1.0
    factor: float = 2.0
    max_s: float = 60.0
    jitter: float = 0.1
    slow_s: float = 10.0
    reset_after_s: float = 600.0


class Intensity(msgspec.Struct, frozen=True, kw_only=True):
    """Failures after ready that are forgiven; each loses half its weight in `half_life_s`."""

    failures_max: float = 5.0
    half_life_s: float = 1800.0


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How long a start may take, and how long a starting worker gets when it is to stop.

    A worker may ask for more time, up to `timeout_max_s` in all. What can't say that it is ready
    (no `has_readiness`) is so when it has lived for `settle_s`. Without any sign of progress for
    `stall_event_s` a start is said to stand still, and nothing is done about it. `stop_grace_s` is
    short because vLLM swallows a SIGTERM that comes while it loads.
    """

    timeout_s: float = 1800.0
    timeout_max_s: float = 7200.0
    settle_s: float = 0.0
    stall_event_s: float = 300.0
    stop_grace_s: float = 5.0


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of a stop: drain, one SIGTERM and `grace_s`, `linger_s` for the rest, tree kill.

    A process may ask for more grace, up to `grace_max_s` in all.
    """

    drain_s: float = 30.0
    grace_s: float = 60.0
    grace_max_s: float = 600.0
    linger_s: float = 2.0
    kill_timeout_s: float = 10.0


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """How often a worker beats, and what silence means.

    Missing `misses_max` beats makes it unready, silence for `expire_s` makes it dead.
    """

    period_s: float = 1.0
    misses_max: int = 5
    expire_s: float = 30.0


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """How a ready engine proves progress, and what it means when it can't.

    Where no tokens flow, its processes are asked each `ask_period_s`. Unanswered for `unready_s`
    makes it unready, for `hang_s` dead; while requests wait and no process is stopped these are
    `hang_s` and `busy_s`. Work that waits for `stall_s` without a token is dead whatever answers.
    Idle, it makes one token each `canary_period_s`; `canary_misses_max` failures in a row are
    death, one is unready.
    """

    ask_period_s: float = 5.0
    unready_s: float = 15.0
    hang_s: float = 45.0
    busy_s: float = 120.0
    stall_s: float = 600.0
    canary_period_s: float = 60.0
    canary_timeout_s: float = 30.0
    canary_misses_max: int = 3


class Retries(msgspec.Struct, frozen=True, kw_only=True):
    """Retries of each failure class before ready, in a row; one more and the replica has failed.

    `start_crash = 2` is three attempts. Classes that aren't here have the run budget.
    """

    config: int = 0
    gpu_lost: int = 0
    oom_load: int = 1
    host_oom: int = 1
    start_timeout: int = 1
    start_crash: int = 2
    network: int = 2
    port_in_use: int = 3
    gpu_busy: int = 5

    def of(self, cause: Cause) -> int | None:
        """Retries of this class; None where the class has no number of its own."""
        number: int | None = getattr(self, cause.value.replace("-", "_"), None)
        return number


class GpuMode(enum.Enum):
    """When a device counts as free: nobody else holds memory, enough of it is free, or always."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"
    OFF = "off"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica wants to see of its devices before each start (see `gate`).

    `share`: the part of a shared device that must be free. `slack_bytes`: what an exclusive one may
    hold beside its baseline. `samples` in a row, `interval_s` apart, must agree. `event_after_s`:
    when a wait is worth an event. `timeout_s`: when it is given up; None waits for ever.
    """

    mode: GpuMode = GpuMode.EXCLUSIVE
    share: float = 1.0
    slack_bytes: int = 512 * 2**20
    samples: int = 2
    interval_s: float = 0.25
    event_after_s: float = 60.0
    timeout_s: float | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the replica machine needs to know about a replica and never changes.

    `members`: size of the gang. `has_readiness`: ready when each member says so; without it, ready
    when started. `drains`: can be asked to finish its requests first. `oneshot`: exit 0 is the
    purpose, not a crash. `holds`: what must be cleared before each start. `crowded`: as many
    others are being born as may be, so a start that nothing else holds back waits for its turn.
    `patience_s`: a wait without an end of its own is looked at again this often.
    """

    backoff: Backoff = Backoff()
    intensity: Intensity = Intensity()
    start: Start = Start()
    stop: Stop = Stop()
    lease: Lease = Lease()
    liveness: Liveness = Liveness()
    retries: Retries = Retries()
    gpu: Gpu = Gpu()
    restart: Restart = Restart.ALWAYS
    members: int = 1
    has_readiness: bool = True
    drains: bool = True
    oneshot: bool = False
    holds: tuple[Hold, ...] = ()
    crowded: bool = False
    patience_s: float = 60.0
