"""A made-up deployment in which everything is going on at once: what the views are tested with."""

from typing import Any

import msgspec

from orchestrator.wire.snapshot import (
    DaemonStatus,
    Deadline,
    ReplicaStatus,
    RoleStatus,
    Snapshot,
    TopologyStatus,
    WorkerStatus,
)

MODEL = "Qwen/Qwen3-0.6B"
LOGS = "/state/logs"


def worker(life: str, **facts: Any) -> WorkerStatus:
    log = f"{LOGS}/{life.partition('#')[0]}.log"
    return WorkerStatus(**{"id": life, "log": log, "engine": "sim", **facts})


def ready(index: int, since_s: float, *workers: WorkerStatus, **facts: Any) -> ReplicaStatus:
    facts = {"incarnation": 1, "routable": True, **facts}
    return ReplicaStatus(
        index=index, phase="ready", want="up", since_s=since_s, workers=list(workers), **facts
    )


WAITING = ReplicaStatus(
    index=1,
    phase="waiting",
    want="up",
    cause="oom-load",
    reason="ran out of GPU memory while it loaded the model",
    advice="lower gpu-memory-utilization, or give the role a whole GPU",
    evidence="torch.OutOfMemoryError: CUDA out of memory.",
    incarnation=4,
    restarts=3,
    since_s=2.2,
    deadline=Deadline(what="next start", in_s=3.4),
    workers=[worker("disagg/decode-1.0#4", gpus=["3"])],
)
STARTING = ReplicaStatus(
    index=2,
    phase="starting",
    want="up",
    incarnation=1,
    since_s=8.8,
    deadline=Deadline(what="gives up starting", in_s=291.2),
    workers=[
        worker("disagg/decode-2.0#1", pid=5001, gpus=["4"], progress="loading weights", percent=43)
    ],
)
FAILED = ReplicaStatus(
    index=0,
    phase="failed",
    want="up",
    cause="crash-loop",
    reason="exited with status 1 within 0.2 s, 5 times in a row",
    advice="read its log, mend it, then `dynorch restart disagg/cache-0`",
    incarnation=5,
    restarts=5,
    since_s=300,
    workers=[worker("disagg/cache-0.0#5", engine="")],
)
FRONTEND = ready(
    0, 7500, worker("disagg/frontend-0.0#1", pid=4800, engine="", inflight=12, requests=2041)
)
PREFILL = ready(
    0,
    63,
    worker("disagg/prefill-0.0#2", pid=4811, gpus=["0"], inflight=2, requests=911, tokens=911),
    incarnation=2,
    restarts=1,
)
GANG = ready(
    0,
    7490,
    worker("disagg/decode-0.0#1", pid=4820, gpus=["1"], inflight=9, requests=1130, tokens=88123),
    worker("disagg/decode-0.1#1", pid=4821, gpus=["2"], inflight=1, requests=3, tokens=88),
)
DISAGG = TopologyStatus(
    name="disagg",
    health="degraded",
    reason="disagg/cache-0: exited with status 1 within 0.2 s, 5 times in a row",
    file="topologies/disagg.toml",
    engine="sim",
    endpoint="http://127.0.0.1:8000",
    models=[MODEL],
    roles=[
        RoleStatus(name="frontend", kind="frontend", replicas=[FRONTEND]),
        RoleStatus(name="prefill", kind="prefill", model=MODEL, replicas=[PREFILL]),
        RoleStatus(name="decode", kind="decode", model=MODEL, replicas=[GANG, WAITING, STARTING]),
    ],
    processes=[RoleStatus(name="cache", kind="process", replicas=[FAILED])],
)
DAEMON = DaemonStatus(
    pid=4711, version="0.1.0", run_dir="/run/dynorch", state_dir="/state", uptime_s=7512
)
SNAPSHOT = Snapshot(daemon=DAEMON, topologies=[DISAGG])
NO_DAEMON = Snapshot(
    daemon=msgspec.structs.replace(DAEMON, pid=None, uptime_s=0), topologies=[DISAGG]
)


def agg(*replicas: ReplicaStatus, health: str = "starting", **facts: Any) -> Snapshot:
    """A small topology with one role, `agg/worker`."""
    role = RoleStatus(name="worker", kind="aggregated", model=MODEL, replicas=list(replicas))
    facts = {"engine": "sim", "endpoint": "http://127.0.0.1:8000", **facts}
    topology = TopologyStatus(name="agg", health=health, roles=[role], **facts)
    return Snapshot(daemon=DAEMON, topologies=[topology])


def replica(phase: str, **facts: Any) -> ReplicaStatus:
    """`agg/worker-0` with one process."""
    facts = {
        "index": 0,
        "want": "up",
        "incarnation": 1,
        "routable": phase == "ready",
        "workers": [worker("agg/worker-0.0#1", pid=100)],
        **facts,
    }
    return ReplicaStatus(phase=phase, **facts)
