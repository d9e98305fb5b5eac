"""How the views say things: durations, phases, one line per sentence.

Whatever came from a worker (a log line in a reason, a progress text) is made harmless here: it may
hold newlines, tabs or escape sequences, and none of them may reach a terminal.
"""

import re

from orchestrator.views.ink import Tone
from orchestrator.wire.snapshot import Deadline, ReplicaStatus, TopologyStatus, WorkerStatus

PHASES: dict[str, tuple[str, Tone]] = {
    "stopped": ("·", "dim"),
    "waiting": ("○", "warn"),
    "starting": ("◐", "busy"),
    "ready": ("●", "good"),
    "draining": ("◒", "busy"),
    "stopping": ("◑", "busy"),
    "completed": ("✓", "dim"),
    "failed": ("✗", "bad"),
    "degraded": ("◉", "warn"),
    "running": ("●", "warn"),
    "unsupervised": ("◉", "warn"),
}
"""Symbol and tone of each phase, of each health that is no phase, and of life without a daemon."""

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def one_line(text: str) -> str:
    """Make any text one harmless line without blanks around it."""
    return harmless(text).strip()


def harmless(text: str) -> str:
    """Make any text safe to print: no escape sequences, no control characters, no line breaks."""
    return _CONTROL.sub(" ", _ESCAPE.sub("", text.expandtabs()))


def duration(seconds: float) -> str:
    """Write a duration with the two units that matter: "3.4 s", "43 s", "2 min 05 s", "3 d 4 h"."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes} min {whole % 60:02} s"
    if whole < 86400:
        return f"{hours} h {minutes % 60:02} min"
    return f"{days} d {hours % 24} h"


def age(seconds: float) -> str:
    """Write how long something has lasted: whole seconds, then whole minutes, then `duration`."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 3600 else duration(whole)


def deadline(limit: Deadline | None) -> str:
    """Say what the clock will bring: "next start in 3.4 s"; empty without a deadline."""
    return "" if limit is None else f"{one_line(limit.what)} in {duration(limit.in_s)}"


def progress(worker: WorkerStatus) -> str:
    """Say what a starting worker does: "loading weights, 43 %"; empty when it says nothing."""
    parts = [one_line(worker.progress)] if worker.progress else []
    if worker.percent is not None:
        parts.append(f"{worker.percent:.0f} %")
    return ", ".join(parts)


def look(phase: str) -> tuple[str, Tone]:
    """Symbol and tone of a phase or a health; an unknown word is shown as it is."""
    return PHASES.get(phase, ("?", "warn"))


def replica_look(replica: ReplicaStatus) -> tuple[str, Tone]:
    """Like `look`, but a ready replica that doesn't answer doesn't look ready."""
    return look("degraded" if is_unready(replica) else replica.phase)


def is_unready(replica: ReplicaStatus) -> bool:
    """Say whether a replica in phase ready doesn't answer: a fact about it, not a phase."""
    return replica.phase == "ready" and not replica.routable


def situation(replica: ReplicaStatus) -> str:
    """Say why a replica is where it is, in one line, with what comes next; empty if all is well."""
    said = one_line(replica.reason)
    doing = progress(replica.workers[0]) if replica.workers else ""
    if doing and replica.phase == "starting":
        # That it was asked to start is no news beside what it does; that it crashed before is.
        said = doing if not said or replica.cause == "requested" else f"{doing}; {said}"
    elif doing and replica.phase == "ready":
        said = said or doing
    if not said and is_unready(replica):
        said = "it doesn't answer at present"
    ahead = deadline(replica.deadline)
    if replica.phase == "starting" and replica.cause == "waiting-dependency":
        said = "what it depends on is there"  # the reason is still that of its wait
    if said and ahead:
        said, ahead = f"{said} ({ahead})", ""
    return "; ".join(filter(None, (said or ahead, lost_output(replica))))


def lost_output(replica: ReplicaStatus) -> str:
    """Say how much of the workers' output never got into the log; empty when nothing is missing."""
    lost = sum(worker.log_dropped_bytes for worker in replica.workers)
    return f"{lost} bytes of output are missing in its log" if lost else ""


def engine(name: str) -> str:
    """Name an engine; the simulated one loudly, because its answers are made up."""
    return "SIMULATED ENGINE" if name == "sim" else name


def endpoint(topology: TopologyStatus) -> str:
    """Where the topology answers, and for which models."""
    models = ", ".join(topology.models)
    return "  ".join(filter(None, (topology.endpoint, models)))
