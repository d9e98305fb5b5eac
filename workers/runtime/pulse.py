"""The ages that a beat carries: since when something is owed, in seconds that we were awake for.

A worker that was stopped itself (SIGSTOP, a frozen container, a machine that was suspended) finds
on waking that everything is an hour late. That proves nothing about its loop or its engine. So ages
are measured by a clock that the control thread moves on with each beat, by little more than a
beat's length however long ago the last one was.

Written on the loop, read by the control thread: plain values, one writer each.
"""

TICK_MAX_S = 2.0
"""The most that one beat may add to the clock, unless beats are further apart anyway."""


class Awake:
    """Seconds that this process has been awake for since its first beat, as beats noticed."""

    def __init__(self, beat_period_s: float) -> None:
        self.s = 0.0
        self._tick_max_s = max(TICK_MAX_S, 2 * beat_period_s)
        self._ticked_at: float | None = None

    def tick(self, now: float) -> None:
        """Move on; `now` is monotonic time. Control thread only."""
        if self._ticked_at is not None:
            self.s += min(now - self._ticked_at, self._tick_max_s)
        self._ticked_at = now


class Pulse:
    """What is known of the engine's progress."""

    def __init__(self, awake: Awake) -> None:
        self.canaries_missed = 0
        self.canary_fault = ""
        self._awake = awake
        self._asked_at: float | None = None
        self._tokens = 0
        self._advanced_at = 0.0
        self._canary_tokens = 0
        self._shown = 0

    # On the loop.

    def asked(self) -> None:
        """A round trip begins."""
        self._asked_at = self._awake.s

    def answered(self) -> None:
        """It came back."""
        self._asked_at = None

    def canary(self, fault: str, tokens: int) -> None:
        """A canary has ended: well, and it made so many tokens; or with this fault."""
        self.canary_fault = fault
        self.canaries_missed = self.canaries_missed + 1 if fault else 0
        self._canary_tokens += 0 if fault else tokens

    def excuse(self) -> None:
        """Forget missed canaries: the engine has made tokens since."""
        self.canary_fault, self.canaries_missed = "", 0

    # In the control thread.

    def engine_age_s(self) -> float:
        """How long the present round trip has taken so far; 0 when there is none."""
        asked_at = self._asked_at
        return 0.0 if asked_at is None else self._awake.s - asked_at

    def stalled_s(self, tokens: int, *, busy: bool) -> float:
        """How long the engine has had work and made no token."""
        if tokens != self._tokens or not busy:
            self._tokens, self._advanced_at = tokens, self._awake.s
        return self._awake.s - self._advanced_at

    def shown(self, tokens: int) -> int:
        """The tokens made for clients. Never fewer than before: a count may lag its canary."""
        self._shown = max(self._shown, tokens - self._canary_tokens)
        return self._shown
