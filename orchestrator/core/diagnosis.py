"""From how a run ended to why: a cause that decides about retrying, and a sentence for people.

Several things are known about an end, and they don't weigh the same. An error at exec, the kernel's
own count of processes that it killed, and the worker's last words beat the log; the log beats the
exit status, and the status alone says little: a READY vLLM whose engine died exits with 0. In the
log, the innermost process is asked first (see `log_lines`), and each thing said is looked up in the
table of known failures (`failure_table`). What the log may say before ready (a wrong flag, a taken
port, no memory) is a different matter after it, so most rows hold in one part of a life only.

A main process that somebody killed is explained by nothing that it had written. And what isn't
known is said to be unknown, with the first error of the innermost process: a wrong explanation
costs more than none. A wrong match can only lower the number of retries, never raise it.
"""

import re
import signal
from collections.abc import Iterator

import msgspec

from orchestrator.core.events import ExitFacts
from orchestrator.core.failure_row import Row, When, fill
from orchestrator.core.failure_table import ROWS
from orchestrator.core.log_lines import (
    INNERMOST,
    OUTERMOST,
    Finding,
    Line,
    findings,
    last_line,
    own_words,
    parse,
    printable,
    recent,
    unwrapped,
)
from orchestrator.core.reasons import Cause, Reason

RECENT_S, RECENT_LINES = 60, 200
"""After ready, only what was logged this shortly before the end can be about it."""

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
        Cause.START_CRASH,
        Cause.UNHEALTHY,
        Cause.ENGINE_DIED,
    }
)
"""Causes that a worker's last words may claim; anything else it says is only text."""

VAGUE = frozenset({Cause.START_CRASH, Cause.ENGINE_DIED, Cause.UNHEALTHY})
"""Causes that name no cause: the text beside them, or the log, may."""

BEFORE_READY = frozenset(
    {
        Cause.CONFIG,
        Cause.OOM_LOAD,
        Cause.GPU_BUSY,
        Cause.PORT_IN_USE,
        Cause.NETWORK,
        Cause.START_CRASH,
        Cause.START_TIMEOUT,
    }
)
"""Causes that explain a failed start; after ready the same words are a crash."""

FROM_OUTSIDE = frozenset(
    {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
)
"""Signals that somebody else sends: what the process had logged before is no reason for them."""

FROM_WORDS, FROM_STATUS = INNERMOST - 1, OUTERMOST + 1
"""Depths of what isn't in the log: last words are asked first, the exit status last."""

SHM_LOW_BYTES = 64 << 20
"""Less than this left in /dev/shm, or a twentieth of it, and a SIGBUS is explained."""


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
    lines = parse(facts.tail)
    ending = ended(describe_status(facts.status), end.ready_s)
    words = (end.bye_text or own_words(lines)).strip()
    said = printable(words)
    starved = out_of_memory(end, said, lines, ending)
    if starved is not None:
        return starved
    claimed = claim(end)
    if claimed is not None and claimed not in VAGUE and claimed is not Cause.CONFIG:
        return Reason(claimed, said or ending, advice_for(claimed, end))
    heard = sorted(worth_hearing(end, words, lines), key=lambda one: one.depth)
    for hearsay in (False, True):
        for finding in heard:
            known = look_up(finding, end, lines, hearsay=hearsay)
            if known is not None:
                return explained(end, *known, ending=ending)
    return unexplained(end, claimed, said, heard, ending)


def claim(end: End) -> Cause | None:
    """Read the cause that the worker's last words name; None if they name none of ours."""
    known = {cause.value: cause for cause in SAYABLE}
    cause = known.get(end.bye_code)
    if cause in BEFORE_READY and end.ready_s is not None:
        return Cause.CRASH if cause is not None else None
    return cause


def worth_hearing(end: End, words: str, lines: list[Line]) -> Iterator[Finding]:
    """List what may tell why: last words, the log, and the signal that ended the main process."""
    killer = signal_of(end.facts.status)
    if words:
        yield spoken(words + shm_words(words, end.facts))
    if killer not in FROM_OUTSIDE:
        if end.ready_s is not None:
            lines = recent(lines, RECENT_S, RECENT_LINES)
        yield from findings(lines)
    if killer is not None:
        words = describe_status(end.facts.status)
        yield Finding(
            FROM_STATUS, "", (words + shm_words(words, end.facts),), "", "", 0, traceback=False
        )


def spoken(text: str) -> Finding:
    """Treat a sentence as the innermost process's own: whoever passed it on has looked for it."""
    text = unwrapped(text)
    return Finding(FROM_WORDS, "", (text,), text, "", 0, traceback=False)


def look_up(
    finding: Finding, end: End, lines: list[Line], *, hearsay: bool
) -> tuple[Row, str, Finding] | None:
    """Find the first row of the table that a finding satisfies, and the line that does."""
    wrong_part = When.BEFORE if end.ready_s is not None else When.AFTER
    before = ""
    for row in ROWS:
        if row.when in {wrong_part, When.NEVER} or row.hearsay is not hearsay:
            continue
        if row.seen and not before:
            before = "\n".join(line.text for line in lines[: finding.number or len(lines)])
        line = row.finds(finding, before)
        if line is not None:
            return row, line, finding
    return None


def explained(end: End, row: Row, line: str, finding: Finding, *, ending: str) -> Reason:
    """Put a known failure in words, with the numbers that its line holds."""
    values = row.values(line)
    if finding.under:
        values["under"] = printable(finding.under)
    if end.facts.oom_kills is not None:
        values["calm"] = ""
    told = {name: printable(text) for name, text in values.items()}
    parts = [fill(row.says, told), ending]
    if finding.depth == FROM_STATUS:
        parts.reverse()
        line = ""
    sentence = "; ".join(part for part in parts if part)
    todo, evidence = fill(row.todo, told), printable(line)
    return Reason(cause_of(row, end), sentence, todo, evidence, hearsay=row.hearsay)


def cause_of(row: Row, end: End) -> Cause:
    """Name the class of a known failure. The table doesn't raise the retries that a status allows.

    An exit code of old convention says "wrong command line"; a row that only means "try again"
    knows no better.
    """
    base = cause_of_status(end.facts.status, end.ready_s)
    said = claim(end)
    if said is Cause.CONFIG:
        return said
    if end.ready_s is None:
        weak = row.cause in {Cause.START_CRASH, Cause.NETWORK, Cause.START_TIMEOUT}
        return base if base is Cause.CONFIG and weak else row.cause
    if row.cause is Cause.GPU_LOST:
        return row.cause
    return said or base


def unexplained(
    end: End, claimed: Cause | None, said: str, heard: list[Finding], ending: str
) -> Reason:
    """Say honestly that the failure isn't known, and show what the innermost process said first."""
    cause = claimed or cause_of_status(end.facts.status, end.ready_s)
    if claimed is None and end.ready_s is not None and engine_died(end.facts.tail):
        cause = Cause.ENGINE_DIED
    if said and (claimed is not None or end.bye_text):
        return Reason(cause, f"{said}; {ending}", advice_for(cause, end), said)
    errors = [one for one in heard if INNERMOST <= one.depth < FROM_STATUS and not is_survived(one)]
    first = next((one for one in errors if one.traceback), errors[0] if errors else None)
    if first is not None and (first.traceback or first.process):
        line = printable(first.lines[0])
        who = f" of {first.process}" if first.process else ""
        sentence = f"{ending}, for no reason that dynorch knows; first error{who}: {line}"
        return Reason(cause, sentence, advice_for(cause, end), line)
    line = last_line(end.facts.tail)
    sentence = f"{ending}; last line: {line}" if line else ending
    return Reason(cause, sentence, advice_for(cause, end), line)


def is_survived(finding: Finding) -> bool:
    """Say whether it is known to end requests at most."""
    return any(row.when is When.NEVER and row.finds(finding, "") for row in ROWS)


def engine_died(tail: str) -> bool:
    """Say whether vLLM's own server noticed that its engine is dead; it exits with 0 then."""
    return "EngineDeadError" in tail or "VLLM::EngineCore died" in tail


def why_silent(tail: str) -> tuple[str, str, str]:
    """What the log tells about a life that was ended for its silence: sentence, advice, line.

    Empty if it tells nothing. An error that would have ended it isn't asked for here: it hadn't.
    """
    lines = parse(tail)
    for finding in [*findings(lines), *(spoken(line.text) for line in lines)]:
        for row in ROWS:
            line = row.finds(finding, "") if row.hangs else None
            if line is not None:
                values = {name: printable(text) for name, text in row.values(line).items()}
                return fill(row.says, values), fill(row.todo, values), printable(line)
    return "", "", ""


# ---- what the kernel knows ---------------------------------------------------------------------


def out_of_memory(end: End, said: str, lines: list[Line], ending: str) -> Reason | None:
    """Blame the kernel's OOM killer: one of the tree was killed by SIGKILL, and its count rose."""
    facts = end.facts
    if not facts.oom_kills:
        return None
    texts = [said, *(line.text for line in recent(lines, RECENT_S, RECENT_LINES))]
    killed = any(SIGKILLED.search(text) for text in texts)
    if signal_of(facts.status) is not signal.SIGKILL and not killed:
        return None
    where = "in its cgroup" if facts.oom_in_cgroup else "on this machine"
    limit = f" (limit {gib(facts.memory_limit_bytes)})" if facts.memory_limit_bytes else ""
    held = f"; its largest process held {gib(facts.rss_peak_bytes)}" if facts.rss_peak_bytes else ""
    who = f"{said}; " if said and "SIGKILL" in said else ""
    sentence = f"the kernel killed it for want of memory {where}{limit}{held}; {who}{ending}"
    advice = (
        "give it more memory or let it use less: a smaller model, KV cache or CPU offload, fewer"
        " workers; `dmesg` names the process"
    )
    return Reason(Cause.HOST_OOM, sentence, advice)


SIGKILLED = re.compile(r"killed by SIGKILL|exit code: -9\b")


def shm_words(text: str, facts: ExitFacts) -> str:
    """Say beside a SIGBUS that /dev/shm is full, if it was."""
    free, size = facts.shm_free_bytes, facts.shm_bytes
    if "SIGBUS" not in text or free is None or free > max(SHM_LOW_BYTES, size // 20):
        return ""
    return f" while /dev/shm is full ({free >> 20} of {size >> 20} MiB left)"


def gib(size: int) -> str:
    """Write a size as people say it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size >> 20} MiB"


def exec_failure(code: str, command: str, name: str) -> Reason:
    """Explain a program that couldn't even be executed."""
    what = EXEC_ERRORS.get(code)
    if what is None:
        sentence = f"could not be executed ({code}): {command}"
        return Reason(Cause.START_CRASH, sentence, f"see `dynorch logs {name}`")
    advice = f"fix `command` in the topology, then `dynorch start {name}`"
    return Reason(Cause.CONFIG, f"{what}: {command}" if command else what, advice, code)


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


def signal_of(status: int | None) -> signal.Signals | None:
    """Read from a raw wait status which signal ended it; None if none that has a name did."""
    if status is None or not status & 0x7F:
        return None
    try:
        return signal.Signals(status & 0x7F)
    except ValueError:
        return None


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
