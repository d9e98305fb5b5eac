"""Writes `docs/failures.md` from the failure table, so that the page can't lag behind.

python -m orchestrator.core.failure_page > docs/failures.md
"""

import re
import sys

from orchestrator.core.failure_row import Row, When
from orchestrator.core.failure_table import ROWS
from orchestrator.core.policy import Retries
from orchestrator.core.reasons import Cause

HEAD = """\
# What dynorch recognises

<!-- Generated: python -m orchestrator.core.failure_page > docs/failures.md -->

When a life ends that nobody had asked to end, dynorch looks at everything that is known: an error
at exec, the worker's last words, the log of the whole tree, the exit status, the kernel's counts of
processes killed for want of memory, and how full `/dev/shm` was. vLLM's outermost process only says
"see root cause above", so the innermost is asked first: Worker, then EngineCore, then the host; in
each the first error, not the last. What comes out is a *reason*: a cause, a sentence, advice with
the number that helps, and the line it was concluded from. `dynorch status`, `dynorch events`, the
daemon's log, the metrics and the body of a 503 tell it in the same words.

A failure that no retry can cure is tried once: `up` ends with 1 and the reason as its last line.
What isn't recognised is said to be unknown, with the first error of the innermost process.

## Causes

The cause is the label of the metrics `dynorch_replica_failures_total{replica, cause}` and
`dynorch_replica_blocked{replica, phase, cause, reason}`, which each frontend exports for engine
roles. It decides how often a start is tried again; what was ready has the crash budget of
`[restart]` instead, except that `gpu-lost` isn't tried again at all.

| cause | meaning | retries of a failed start |
| --- | --- | --- |
"""

MEANINGS = {
    Cause.CONFIG: "flags, model files or the machine must be changed first",
    Cause.GPU_LOST: "the GPU itself has failed",
    Cause.OOM_LOAD: "too little memory to load; waits at least 10 s",
    Cause.HOST_OOM: "killed by the kernel for want of memory",
    Cause.START_TIMEOUT: "not ready in time",
    Cause.START_CRASH: "any other end before ready",
    Cause.NETWORK: "the model hub can't be reached; waits at least 10 s",
    Cause.PORT_IN_USE: "a port is taken",
    Cause.GPU_BUSY: "somebody took GPU memory between the check and the start",
    Cause.CRASH: "an end after ready, exit code 0 included",
    Cause.ENGINE_DIED: "the engine in a ready worker died",
    Cause.UNHEALTHY: "alive, but it made no progress or didn't beat",
    Cause.LOST: "the process that looks after the worker was killed",
    Cause.CRASH_LOOP: "too many of these in too short a time",
}

MIDDLE = """
## Failures

A row is recognised by its words in one line ("..." stands for anything). What ends a ready life
counts as `crash` or `engine-died`, in the row's words. Rows that *end no life* are listed because
they look as if they did, and are blamed for none.

| # | words | cause | counts | what it says | what to do |
| --- | --- | --- | --- | --- | --- |
"""

TAIL = """
What only the exit status and the kernel tell:

| seen | reason |
| --- | --- |
| SIGKILL of one of its processes, and the kernel's OOM count rose | `host-oom`, with sizes |
| SIGBUS, and less than 64 MiB (or a twentieth) of `/dev/shm` is free | row 28, with both sizes |
| SIGKILL, SIGTERM, SIGINT, SIGHUP or SIGQUIT, not by us | said so; the log isn't blamed for it |
| exit code 2, 64, 78, 126 or 127 before ready | `config`, by old convention |
| the command isn't there, or can't be executed | `config`, with the path |
"""


def page() -> str:
    """Return the whole page."""
    causes = [
        f"| `{cause.value}` | {text} | {retries(cause)} |\n" for cause, text in MEANINGS.items()
    ]
    rows = [line(row) for row in sorted(ROWS, key=lambda row: int(row.number))]
    return HEAD + "".join(causes) + MIDDLE + "".join(rows) + TAIL


def retries(cause: Cause) -> str:
    """Say how often a failed start of this class is tried again."""
    number = Retries().of(cause)
    return "" if number is None else str(number) if number else "none"


def line(row: Row) -> str:
    """Write one row."""
    words = ", ".join(f"`{shown(text)}`" for text in row.words)
    if row.near or row.seen:
        words += f" with `{shown(row.near or row.seen)}` near it"
    cause = "" if row.when is When.NEVER else f"`{row.cause.value}`"
    says, todo = (plain(text) for text in (row.says, row.todo))
    return f"| {row.number} | {words} | {cause} | {row.when.value} | {says} | {todo} |\n"


def shown(words: str) -> str:
    """Write words as they can stand in a table."""
    return words.removeprefix("re:").replace("|", "\\|").replace("`", "'")


def plain(template: str) -> str:
    """Show a text's numbers as N, and all of its parts."""
    text = re.sub(r"{(\w+)}", lambda match: "" if match[1] == "calm" else "…", template)
    return text.replace("[", "").replace("]", "").removeprefix(", ").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
