"""A few lines at the bottom of a terminal that are rewritten in place.

The whole frame is one write, so nothing flickers, and every line is cut to the terminal's width
first: a line that wraps would make us count wrong and eat the text above. What was drawn last
stays on the screen, and so does everything noted meanwhile, above it.
"""

from typing import TextIO

from orchestrator.views.ink import Line, Pen, cut, size

_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class Redraw:
    """Owns the lines between the cursor and what was printed before. The stream is a terminal."""

    def __init__(self, out: TextIO, pen: Pen) -> None:
        self._out = out
        self._pen = pen
        self._drawn: list[Line] = []

    def room(self) -> tuple[int, int]:
        """Columns and lines that a frame may have now; the terminal may be resized at any time."""
        columns, lines = size(self._out)
        return columns, max(lines - 2, 1)

    def draw(self, lines: list[Line]) -> None:
        """Replace the frame, if it is another."""
        if lines != self._drawn:
            self._write([], lines)

    def note(self, line: Line) -> None:
        """Print a line that stays, above the frame."""
        self._write([line], self._drawn)

    def leave(self) -> None:
        """Let the frame stand as it is; whatever is written next comes below it."""
        self._drawn = []

    def _write(self, above: list[Line], lines: list[Line]) -> None:
        columns, room = self.room()
        back = _UP_AND_CLEAR.format(len(self._drawn)) if self._drawn else ""
        self._drawn = [cut(line, columns) for line in lines[:room]]
        self._out.write(back + self._pen.draw(above) + self._pen.draw(self._drawn))
        self._out.flush()
