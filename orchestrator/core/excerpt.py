"""The part of a log's end that can tell why a life ended, and no more.

The end of a log travels further than the log: into an event, a state, the journal, where it stays.
64 KiB of it for every crash would soon fill the journal, and most of that is what vLLM says about
its configuration and the source lines of tracebacks. What is left out here is what `diagnosis`
doesn't look at; so the excerpt is diagnosed like the whole, and a replay of the journal comes to
the same reason. What looks like a secret is left out, too.
"""

from orchestrator.core.log_lines import QUIET, SECRETS, is_noise, level_of

EXCERPT_MAX = 16 << 10
HEAD_SHARE = 0.6
LAST_LINES = 20
"""The last lines are kept whatever they are."""

LINE_CHARS = 600
MARKS = ("Capturing CUDA graphs", "No available shared memory broadcast block")
"""Said at a level at which nobody says why it died, and yet part of the story."""


def excerpt(tail: str) -> str:
    """Return at most EXCERPT_MAX characters of the end of a log: what may tell why it ended."""
    kept: list[str] = []
    raw = tail.splitlines()
    in_frame = False
    for number, line in enumerate(raw):
        level, text = level_of(line)
        is_source = in_frame and text.startswith("    ")
        in_frame = is_source or text.lstrip().startswith("File ")
        told = level not in QUIET and not is_source and not is_noise(text)
        if told or number >= len(raw) - LAST_LINES or any(mark in text for mark in MARKS):
            kept.append(line[:LINE_CHARS])
    whole = "\n".join(kept)
    if len(whole) > EXCERPT_MAX:
        whole = cut(whole)
    return SECRETS.sub("***", whole)


def cut(whole: str) -> str:
    """Keep the first part and the last, in whole lines."""
    head = int(EXCERPT_MAX * HEAD_SHARE)
    return (
        whole[:head].rpartition("\n")[0] + "\n" + whole[head - EXCERPT_MAX + 1 :].partition("\n")[2]
    )
