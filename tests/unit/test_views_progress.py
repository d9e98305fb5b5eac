"""Live progress: what a terminal sees, and what a build log keeps."""

import io
import re

from orchestrator.views.ink import Pen, Span, plain
from orchestrator.views.progress import Progress, progress_lines
from orchestrator.wire.snapshot import Deadline, Snapshot
from tests.unit.made_up import DAEMON, NO_DAEMON, SNAPSHOT, agg, ready, replica, worker


class Terminal(io.StringIO):
    """A stream that says it is a terminal of 80 by 24."""

    encoding = "utf-8"

    def isatty(self):
        return True


class Clock:
    """Time that moves when told to."""

    now_s = 100.0

    def __call__(self):
        return self.now_s


def starting(text, percent=None):
    doing = worker("agg/worker-0.0#1", pid=100, progress=text, percent=percent)
    return agg(replica("starting", workers=[doing]))


def stopping(left_s):
    return agg(
        replica("stopping", want="down", deadline=Deadline(what="kills the rest", in_s=left_s)),
        health="stopping",
    )


def test_a_pipe_gets_a_line_for_each_change():
    out = io.StringIO()
    progress = Progress("agg", out, Clock())
    for percent in (10, 20, 30):
        progress.show(starting("loading weights", percent))
    progress.show(starting("compiling"))
    progress.show(agg(replica("ready")))
    progress.show(agg(replica("ready")))
    assert out.getvalue().splitlines() == [
        "agg/worker-0 starting: loading weights, 10 %",
        "agg/worker-0 starting: compiling",
        "agg/worker-0 ready",
    ]


def test_statement_52_a_stop_is_reported_each_second_with_pid_step_and_seconds_left():
    out, clock = io.StringIO(), Clock()
    progress = Progress("agg", out, clock)
    for left_s in (15.0, 14.5, 14.0):
        progress.show(stopping(left_s))
        clock.now_s += 0.5
    assert out.getvalue().splitlines() == [
        "agg/worker-0 stopping (pid 100): kills the rest in 15 s",
        "agg/worker-0 stopping (pid 100): kills the rest in 14 s",
    ]


def test_a_pipe_hears_once_that_the_daemon_is_gone():
    out = io.StringIO()
    progress = Progress("none", out, Clock())
    progress.show(NO_DAEMON)
    progress.show(NO_DAEMON)
    assert out.getvalue() == "daemon gone; 5 workers still run\n"


def test_a_terminal_is_rewritten_only_when_a_word_changes(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    progress = Progress("agg", out, Clock())
    progress.show(starting("loading"))
    first = out.getvalue()
    assert "agg/worker-0  ◐ starting" in first
    assert "loading" in first
    progress.show(starting("loading"))
    assert out.getvalue() == first
    progress.show(agg(replica("ready")))
    assert out.getvalue().startswith(first + "\x1b[1F\x1b[Jagg/worker-0  ● ready")


def test_notes_go_above_the_live_part_and_last_words_below(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    progress = Progress("agg", out, Clock())
    progress.show(starting("loading"))
    progress.note([Span("a note")])
    assert re.search(r"\x1b\[1F\x1b\[Ja note\nagg/worker-0 .*\n$", out.getvalue())
    progress.say([[Span("the end")]])
    progress.note([Span("later")])
    assert out.getvalue().endswith("the end\nlater\n")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    progress = Progress("agg", out, Clock())
    progress.show(starting("loading"))
    assert out.getvalue() == "agg/worker-0 starting: loading\n"


def test_what_is_ready_gives_way_when_there_is_no_room():
    replicas = [ready(i, 5, worker(f"agg/worker-{i}.0#1", pid=i + 1)) for i in range(50)]
    many: Snapshot = agg(*replicas[:-1], replica("failed", index=49, reason="no luck"))
    lines = [plain(line) for line in progress_lines(many, "agg", Pen(width=80), 10)]
    assert lines[0].startswith("agg/worker-49  failed")
    assert lines[1:] == ["49 of 50 replicas are ready"]


def test_every_line_fits():
    for width in (30, 60, 100):
        lines = progress_lines(SNAPSHOT, "disagg", Pen(width=width, symbols=True), 20)
        assert len(lines) == 6
        assert max(len(plain(line)) for line in lines) <= width


def test_a_topology_that_is_not_there_shows_nothing():
    assert progress_lines(Snapshot(daemon=DAEMON), "agg", Pen(width=80), 20) == []
