"""One line per event: when, who, what, and why.

The same line is printed by `dynorch events`, above the live progress of `up`, and in the TUI, so
that what an operator reads in one place can be searched for in the others. Columns have fixed
places: a column of times and names is read at a glance.
"""

from datetime import UTC, datetime, tzinfo

import msgspec

from orchestrator.views import words
from orchestrator.views.ink import Line, Span, Tone, plain
from orchestrator.wire.events import Event

_SUBJECT_COLUMNS = 22
_WHAT_COLUMNS = 15


def event_text(event: Event, *, zone: tzinfo | None = None, date: bool = False) -> str:
    """One plain line without a newline. `zone` None: local time; `date`: with the day."""
    return plain(event_line(event, zone=zone, date=date))


def event_line(event: Event, *, zone: tzinfo | None = None, date: bool = False) -> Line:
    """Build the line with tones, for `Pen.draw`. Details follow the reason, sorted by key."""
    at = datetime.fromtimestamp(event.wall, tz=UTC).astimezone(zone)
    clock = f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"
    when = f"{at:%Y-%m-%d} {clock}" if date else clock
    happened = words.one_line(event.what)
    return [
        Span(when, "dim"),
        Span(f"  {words.one_line(event.subject):{_SUBJECT_COLUMNS}}"),
        Span(f"  {happened:{_WHAT_COLUMNS}}", _tone(event)),
        *_tail(event),
    ]


def event_brief(event: Event, *, zone: tzinfo | None = None) -> Line:
    """Build the line for a narrow pane: no fraction of a second, no columns, no details."""
    at = datetime.fromtimestamp(event.wall, tz=UTC).astimezone(zone)
    line = [Span(f"{at:%H:%M:%S} ", "dim"), Span(words.one_line(event.subject))]
    if event.what != "phase-changed":  # the phase that follows says so
        line.append(Span(f" {words.one_line(event.what)}", _tone(event)))
    return line + _tail(msgspec.structs.replace(event, detail={}))


def _tail(event: Event) -> Line:
    spans = Line()
    if event.phase:
        spans.append(Span(f" {event.phase}", words.look(event.phase)[1]))
    if event.reason and event.reason != event.phase:
        spans.append(Span((" " if not event.phase else ": ") + words.one_line(event.reason)))
    if event.detail:
        pairs = " ".join(f"{key}={_value(text)}" for key, text in sorted(event.detail.items()))
        spans.append(Span(f" ({pairs})", "dim"))
    return spans


def _value(text: str) -> str:
    text = words.one_line(text)
    return f'"{text}"' if not text or " " in text else text


def _tone(event: Event) -> Tone:
    bad = ("exited", "failed", "lost", "killed", "refused")
    if event.phase == "failed" or event.what.endswith(bad):
        return "bad"
    return "good" if event.phase == "ready" else ""
