"""How a verb waits for what it has asked for: by events, not by the clock."""

from orchestrator.cli import follow
from orchestrator.wire.events import Event


class Stream:
    """Events that are there already; notes how long each next one is waited for."""

    def __init__(self, *whats: str, subject: str = "agg") -> None:
        self.events = [Event(seq=1, wall=0.0, subject=subject, what=what) for what in whats]
        self.waits: list[float] = []

    def next(self, timeout_s: float) -> Event | None:
        self.waits.append(timeout_s)
        return self.events.pop(0) if self.events else None


def gather(stream: Stream) -> list[float]:
    follower = follow.Follower.__new__(follow.Follower)
    follower._name, follower._subscription = "agg", stream
    follower._gather()
    return stream.waits


def test_the_rest_of_a_change_is_waited_for():
    assert gather(Stream("phase-changed")) == [follow.LOOK_S, follow.SETTLE_S]


def test_nothing_is_waited_for_after_the_last_event():
    assert gather(Stream("phase-changed", "gone", "more"))[1:] == [follow.SETTLE_S]
    assert len(gather(Stream("gone", "more", subject="other"))) == 3


def test_a_storm_of_events_is_looked_at_now_and_then(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(follow.time, "monotonic", lambda: next(now) * follow.BURST_S / 2.5)
    assert len(gather(Stream(*["phase-changed"] * 50))) == 3
