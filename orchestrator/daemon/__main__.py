"""`python -m orchestrator.daemon`: how verbs start the daemon, in the background and on demand.

It lives long and is told little, so it does without the command line's library, which would be two
megabytes for as long as it lives. What it can be told:

    --ready-fd N    where to say "ready", or why not
    --go-fd N       wait there for the word to begin, see `client.Standby`
    --take-over     take over from the daemon that runs
"""

import gc
import sys

GARBAGE_MIN = 100_000
"""Imports make many objects and no garbage. The daemon then has thresholds of its own."""


def main(argv: list[str]) -> int:
    """Run the daemon; returns its exit status."""
    gc.set_threshold(GARBAGE_MIN)
    from orchestrator.daemon.entry import run, told_to_go  # noqa: PLC0415  after the line above

    go_fd = number_after("--go-fd", argv)
    if go_fd >= 0 and not told_to_go(go_fd):
        return 0
    ready_fd = number_after("--ready-fd", argv)
    return run(on_demand=True, ready_fd=ready_fd, replace="--take-over" in argv)


def number_after(name: str, argv: list[str]) -> int:
    """The number that follows a name, -1 where the name isn't."""
    return int(argv[argv.index(name) + 1]) if name in argv else -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
