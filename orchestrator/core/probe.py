"""The judge of probes: what one answer after the other says about a process.

Whoever asks tells whether there was an answer, and gets back what follows, if anything does, and
when to ask again. A start has no limit of failures: refused connections are what loading sounds
like, and the start's own deadline rules. Afterwards a few misses in a row make a process unready,
and one answer brings it back. Liveness is judged apart, with more patience, and ends in a restart.

A starting process is asked soon and then less and less often, up to once a second: a server that
is up in 100 ms needn't wait for the second, and one that loads for ten minutes isn't pestered.
"""

import enum

import msgspec

from orchestrator.topology.probes import Kind

FIRST_S = 0.05
"""How soon after its birth a process is asked for the first time; then the pause doubles."""

STARTING_S = 1.0
"""The longest pause between questions to a starting process."""

LOG_S = 0.2
"""Likewise, where asking means to look into its log: that costs nobody anything."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How to ask, how often, and how many misses in a row count.

    `target`: a URL, HOST:PORT, or regular expression; for `notify` whose word counts, "main" or
    "all". `argv`: the command of `exec`.
    """

    kind: Kind
    target: str = ""
    argv: tuple[str, ...] = ()
    period_s: float = 2.0
    timeout_s: float = 2.0
    misses_max: int = 3

    def __str__(self) -> str:
        match self.kind:
            case "exec":
                return " ".join(self.argv)
            case "log":
                return f'a log line like "{self.target}"'
            case "notify":
                return "its READY=1"
        return self.target

    @property
    def is_asked(self) -> bool:
        """Whether there is somebody to ask; `notify` comes by itself."""
        return self.kind != "notify"


class Verdict(enum.Enum):
    """What follows from an answer, or from its absence."""

    READY = "ready"
    MISSED = "missed"
    BACK = "back"
    DEAD = "dead"


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """One probe of one life. `ready`: it has answered once, or it was ready before we came.

    `vital`: misses mean a restart. `missed`: it counts as unready. `asked`: questions so far.
    """

    vital: bool = False
    ready: bool = False
    missed: bool = False
    misses: int = 0
    asked: int = 0


def answered(watch: Watch) -> tuple[Watch, Verdict | None]:
    """Note a good answer."""
    verdict = None
    if not watch.ready:
        verdict = Verdict.READY
    elif watch.missed:
        verdict = Verdict.BACK
    watch = msgspec.structs.replace(
        watch, ready=True, missed=False, misses=0, asked=watch.asked + 1
    )
    return watch, verdict


def unanswered(watch: Watch, probe: Probe) -> tuple[Watch, Verdict | None]:
    """Note a bad answer, or none in time."""
    watch = msgspec.structs.replace(watch, misses=watch.misses + 1, asked=watch.asked + 1)
    if not watch.ready or watch.misses < probe.misses_max or watch.missed:
        return watch, None
    return msgspec.structs.replace(watch, missed=True), (
        Verdict.DEAD if watch.vital else Verdict.MISSED
    )


def pause_s(watch: Watch, probe: Probe) -> float | None:
    """Say how long after the last question the next one is due; None: no more questions."""
    if watch.vital and watch.missed:
        return None
    if watch.ready:
        return None if probe.kind == "log" else probe.period_s
    longest = LOG_S if probe.kind == "log" else min(STARTING_S, probe.period_s)
    return float(min(FIRST_S * 2.0 ** min(watch.asked, 16), longest))
