"""Styled text that knows nothing of terminals.

A line is a list of spans, each with a tone: what it means ("bad"), not how it looks (red). Views
build lines; a `Pen` puts them on one particular stream, with colours and symbols or as plain
ASCII. So a test compares words, a pipe gets text that greps and diffs well, and the TUI maps the
same tones onto its theme.
"""

import os
import textwrap
from collections.abc import Iterable
from typing import Literal, NamedTuple, Self, TextIO

Tone = Literal["", "good", "busy", "warn", "bad", "dim", "bold"]

_SGR: dict[Tone, str] = {
    "good": "32",
    "busy": "36",
    "warn": "33",
    "bad": "1;31",
    "dim": "2",
    "bold": "1",
}

RICH: dict[Tone, str] = {
    "": "",
    "good": "green",
    "busy": "cyan",
    "warn": "yellow",
    "bad": "bold red",
    "dim": "dim",
    "bold": "bold",
}
"""The same tones as rich writes them."""


class Span(NamedTuple):
    """A piece of text with one tone."""

    text: str
    tone: Tone = ""


Line = list[Span]


def plain(line: Iterable[Span]) -> str:
    """Only the words, without blanks at the end."""
    return "".join(span.text for span in line).rstrip()


def length(line: Iterable[Span]) -> int:
    """How many columns the line takes."""
    return sum(len(span.text) for span in line)


def cut(line: Iterable[Span], width: int) -> Line:
    """Shorten to at most `width` columns; an ellipsis says that something is missing."""
    left, kept = width, Line()
    for span in line:
        if len(span.text) <= left:
            kept.append(span)
            left -= len(span.text)
            continue
        if left > 0:
            kept.append(Span(span.text[: left - 1] + "…", span.tone))
        elif kept:
            kept[-1] = Span(kept[-1].text[:-1] + "…", kept[-1].tone)
        break
    return kept


def wrap(text: str, tone: Tone, indent: int, width: int | None) -> list[Line]:
    """Indented lines of at most `width` columns; a single line when `width` is None."""
    if width is None:
        return [[Span(" " * indent + text, tone)]]
    pieces = textwrap.wrap(text, max(width - indent, 20), break_on_hyphens=False)
    return [[Span(" " * indent + piece, tone)] for piece in pieces]


def size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of the terminal behind a stream; 80 by 24 if it won't tell."""
    try:
        found = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return found.columns or 80, found.lines or 24


class Pen(NamedTuple):
    """What one stream can show. `width` None: nobody looks, so nothing is cut or wrapped.

    `moves`: the cursor can be moved, so lines can be rewritten.
    """

    width: int | None = None
    colour: bool = False
    symbols: bool = False
    moves: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Self:
        """Find out: a terminal gets its width and colours (unless NO_COLOR), a pipe plain text."""
        if not stream.isatty():
            return cls()
        dumb = os.environ.get("TERM", "") in {"", "dumb"}
        return cls(
            width=size(stream)[0],
            colour=not dumb and not os.environ.get("NO_COLOR"),
            symbols="utf" in (stream.encoding or "").lower(),
            moves=not dumb,
        )

    def draw(self, lines: Iterable[Line]) -> str:
        """All lines as text, each ended by a newline."""
        return "".join(f"{self._draw(line)}\n" for line in lines)

    def _draw(self, line: Line) -> str:
        if not self.colour:
            return plain(line)
        return "".join(
            f"\x1b[{_SGR[span.tone]}m{span.text}\x1b[0m" if span.tone else span.text
            for span in line
        )
