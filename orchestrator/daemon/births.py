"""What a worker is told when it is born: its configuration, and where to report.

The plan says what is the same in all its lives; ports, directories and endpoints are added here.
"""

import sys
from pathlib import Path

from orchestrator.core.plan import PlannedWorker
from orchestrator.daemon import port_desk
from orchestrator.daemon.unit import Unit
from orchestrator.host.notify import NAME as NOTIFY_NAME
from orchestrator.host.rundir import RunDir
from orchestrator.wire import config
from orchestrator.wire.ids import LifeId


def lineage(planned: PlannedWorker) -> tuple[str, str]:
    """Say from which zygote a worker comes: the profile, and the interpreter if it isn't ours."""
    if planned.python is not None:
        return planned.engine, planned.python
    return ("vllm" if planned.engine == "vllm" else "bare"), ""


def path_of(planned: PlannedWorker) -> list[str]:
    """What is put before the import path of a worker: nothing of ours in another interpreter."""
    return [] if planned.python is not None else sys.path


def worker_config(
    run_dir: RunDir, unit: Unit, life: LifeId, directory: Path, ports: dict[str, int]
) -> bytes:
    """Encode what an engine worker or frontend needs to run. `ports`: those chosen for it."""
    planned, policy = unit.spec.members[life.member], unit.spec.policy
    return config.encode(
        config.WorkerConfig(
            life=str(life),
            kind=planned.kind,
            control=f"ipc://{run_dir.control}",
            events=f"ipc://{run_dir.events}",
            plane=f"ipc://{directory}/p" if planned.engine else "",
            state_dir=str(directory / "t"),
            model=planned.model,
            served_names=list(planned.served_names),
            options=planned.options,
            gang=port_desk.gang(unit, life, ports),
            ports=ports,
            beat_period_s=policy.lease.period_s,
            checks=config.Checks(
                ask_period_s=policy.liveness.ask_period_s,
                canary_period_s=policy.liveness.canary_period_s,
                canary_timeout_s=policy.liveness.canary_timeout_s,
            ),
        )
    )


def notify_env(unit: Unit, directory: Path) -> dict[str, str]:
    """What a process that may speak to its notify socket finds in its environment."""
    if not unit.spec.notify:
        return {}
    env = {"NOTIFY_SOCKET": f"{directory}/{NOTIFY_NAME}"}
    if unit.spec.watchdog_s is not None:
        env["WATCHDOG_USEC"] = str(round(unit.spec.watchdog_s * 1_000_000))
    return env
