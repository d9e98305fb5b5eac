"""From how a run ended to why: a cause that decides about retrying, and a sentence for people.

Several things are known about an end, and they don't weigh the same. An error at exec and the
worker's own last words beat the log, the log beats the exit status, and the status alone says
little: a READY vLLM whose engine died exits with 0. What the log may say before ready (a wrong
flag, a taken port, no memory) is a different matter after it, so those rules hold before ready
only. A wrong match can only lower the number of retries, never raise it.
"""

import signal

import msgspec

from orchestrator.core.events import ExitFacts
from orchestrator.core.reasons import Cause, Reason

LINE_MAX = 240
"""Characters of a log line that a reason quotes; the log has the rest."""

CONFIG_CODES = frozenset({2, 64, 78, 126, 127})
"""Exit codes that before ready mean a wrong command line or file, by old convention."""

EXEC_ERRORS = {
    "ENOENT": "command not found",
    "ENOTDIR": "command not found",
    "EACCES": "not executable (permission denied)",
    "ENOEXEC": "not a program that this machine can run",
}

SAYABLE = frozenset(
    {
        Cause.CONFIG,
        Cause.GPU_LOST,
        Cause.OOM_LOAD,
        Cause.GPU_BUSY,
        Cause.HOST_OOM,
        Cause.PORT_IN_USE,
        Cause.UNHEALTHY,
        Cause.ENGINE_DIED,
    }
)
"""Causes that a worker's last words may claim; anything else it says is only text."""

BEFORE_READY = frozenset({Cause.CONFIG, Cause.OOM_LOAD, Cause.GPU_BUSY, Cause.PORT_IN_USE})
"""Causes that explain a failed start; after ready the same words are a crash."""


class Rule(msgspec.Struct, frozen=True):
    """If a log line holds all of `words`: this cause, this advice."""

    words: tuple[str, ...]
    cause: Cause
    advice: str = ""


NOISE = (
    "resource_tracker: There appear to be",
    "There appear to be %d",
    "destroy_process_group() was not called",
    "nanobind: leaked",
    "FutureWarning",
    "Triton is installed, but doesn't include",
)
"""What a dying Python, torch or vLLM prints after whatever happened: it explains nothing."""

RULES = (
    Rule(
        ("Free memory on device", "less than desired"),
        Cause.GPU_BUSY,
        "somebody else holds memory on that GPU",
    ),
    Rule(
        ("CUDA out of memory",),
        Cause.OOM_LOAD,
        "the model doesn't fit: more GPUs (tensor-parallel), quantisation, or a smaller model",
    ),
    Rule(
        ("No available memory for the cache blocks",),
        Cause.OOM_LOAD,
        "raise gpu-memory-utilization, or use more GPUs",
    ),
    Rule(
        ("larger than the available KV cache memory",),
        Cause.OOM_LOAD,
        "lower max-model-len, or raise gpu-memory-utilization",
    ),
    Rule(("Address already in use",), Cause.PORT_IN_USE, "another program listens on that port"),
    Rule(("EADDRINUSE",), Cause.PORT_IN_USE, "another program listens on that port"),
    Rule(("error: unrecognized arguments",), Cause.CONFIG, "fix the engine's flags"),
    Rule(("is not a valid model identifier",), Cause.CONFIG, "check the model's name or path"),
    Rule(("RepositoryNotFoundError",), Cause.CONFIG, "check the model's name, or set HF_TOKEN"),
    Rule(("GatedRepoError",), Cause.CONFIG, "accept the model's licence and set HF_TOKEN"),
    Rule(("EngineDeadError",), Cause.ENGINE_DIED),
    Rule(("VLLM::EngineCore died",), Cause.ENGINE_DIED),
)
"""First match wins, in this order; of several matching lines the first in the log is quoted."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known about an unasked end. `ready_s` is None if it was never ready."""

    name: str
    facts: ExitFacts
    ready_s: float | None
    bye_code: str = ""
    bye_text: str = ""


def diagnose(end: End) -> Reason:
    """Find the reason of an end that nobody asked for; its cause is the failure class."""
    facts = end.facts
    if facts.exec_error:
        return exec_failure(facts.exec_error, facts.command, end.name)
    ending = ended(describe_status(facts.status), end.ready_s)
    if end.bye_text or end.bye_code:
        said = spoken(end, ending)
        if said is not None:
            return said
    matched = match_log(end, ending)
    if matched is not None:
        return matched
    line = last_line(facts.tail)
    sentence = f"{ending}; last line: {line}" if line else ending
    cause = cause_of_status(facts.status, end.ready_s)
    return Reason(cause, sentence, advice_for(cause, end), line)


def exec_failure(code: str, command: str, name: str) -> Reason:
    """Explain a program that couldn't even be executed."""
    what = EXEC_ERRORS.get(code)
    if what is None:
        sentence = f"could not be executed ({code}): {command}"
        return Reason(Cause.START_CRASH, sentence, f"see `dynorch logs {name}`")
    advice = f"fix `command` in the topology, then `dynorch start {name}`"
    return Reason(Cause.CONFIG, f"{what}: {command}" if command else what, advice, code)


def spoken(end: End, ending: str) -> Reason | None:
    """Take the worker's last words; None if they don't name a failure."""
    known = {cause.value: cause for cause in SAYABLE}
    cause = known.get(end.bye_code)
    if cause is None:
        return None
    if end.ready_s is not None and cause in BEFORE_READY:
        cause = Cause.CRASH
    text = printable(end.bye_text) or ending
    return Reason(cause, text, advice_for(cause, end))


def match_log(end: End, ending: str) -> Reason | None:
    """Find the first rule that one of the last log lines satisfies."""
    lines = [printable(line) for line in end.facts.tail.splitlines()]
    for rule in RULES:
        if end.ready_s is not None and rule.cause in BEFORE_READY:
            continue
        for line in lines:
            if all(word in line for word in rule.words):
                cause = rule.cause
                if cause is Cause.ENGINE_DIED and end.ready_s is None:
                    cause = Cause.START_CRASH
                return Reason(cause, f"{ending}: {line}", rule.advice, line)
    return None


def cause_of_status(status: int | None, ready_s: float | None) -> Cause:
    """Name the failure class when there is nothing but a status to go by."""
    if status is None:
        return Cause.LOST
    if ready_s is not None:
        return Cause.CRASH
    return Cause.CONFIG if exit_code(status) in CONFIG_CODES else Cause.START_CRASH


def advice_for(cause: Cause, end: End) -> str:
    """Say what to do where the evidence itself doesn't."""
    if cause is Cause.CONFIG:
        return f"fix what it complains about, then `dynorch start {end.name}`"
    if exit_code(end.facts.status) == 0 and end.ready_s is not None:
        meant = 'if it is meant to end, give it restart = { policy = "on-failure" }'
        return f"see `dynorch logs {end.name}`; {meant}"
    return f"see `dynorch logs {end.name}`"


def describe_status(status: int | None) -> str:
    """Put a raw wait status in words."""
    if status is None:
        return "lost with its exit status (its shim died)"
    number = status & 0x7F
    if number == 0:
        return f"exited with code {exit_code(status)}"
    try:
        word = signal.Signals(number).name
    except ValueError:
        word = f"signal {number}"
    return f"main process killed by {word} (not by us)"


def exit_code(status: int | None) -> int | None:
    """Read the exit code from a raw wait status; None if it didn't exit by itself."""
    if status is None or status & 0x7F:
        return None
    return status >> 8 & 0xFF


def ended(how: str, ready_s: float | None) -> str:
    """Say how it ended, and where in its life."""
    if ready_s is None:
        return f"{how} before it was ready"
    return f"{how}, {seconds(ready_s)} after it became ready"


def seconds(duration_s: float) -> str:
    """Write a duration as people say it."""
    if duration_s < 120:
        return f"{duration_s:.1f} s"
    if duration_s < 7200:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.1f} h"


def last_line(tail: str) -> str:
    """Return the last line that says anything about an end."""
    for line in reversed(tail.splitlines()):
        text = printable(line)
        if text and not any(noise in text for noise in NOISE):
            return text
    return ""


def printable(text: str) -> str:
    """Make foreign text fit for one line of ours: no control characters, bounded length."""
    clean = "".join(char if char.isprintable() else " " for char in text).strip()
    return clean if len(clean) <= LINE_MAX else clean[: LINE_MAX - 3] + "..."
