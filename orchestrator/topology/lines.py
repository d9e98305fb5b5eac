"""On which line each key of a TOML text stands.

`tomllib` is the parser and has the last word on what is valid; it forgets where things stood. This
scanner reads the same text again, after `tomllib` has accepted it, and so may be small: it never
judges, it only has to find the ends of keys and values. A property test holds it against `tomllib`:
the same paths, on the right lines.
"""

import re
import tomllib
from bisect import bisect_right

from orchestrator.topology.complaints import Path

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every key, table header and list element; `text` must be valid TOML."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    """A cursor over the text. Methods named for a construct consume exactly that construct."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0] + [m.end() for m in re.finditer("\n", text)]
        self._array_lengths: dict[Path, int] = {}
        self.lines: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return
            if self._text.startswith("[[", self._at):
                table = self._array_header()
            elif self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _header(self) -> Path:
        at, self._at = self._at, self._at + 1
        path = self._resolve(self._dotted_key(), at)
        self._at += 1
        self.lines[path] = self._line(at)
        return path

    def _array_header(self) -> Path:
        at, self._at = self._at, self._at + 2
        keys = self._dotted_key()
        path = (*self._resolve(keys[:-1], at), keys[-1])
        self._at += 2
        self._note(path, at)
        index = self._array_lengths.get(path, 0)
        self._array_lengths[path] = index + 1
        self._note((*path, index), at)
        return (*path, index)

    def _resolve(self, keys: list[str], at: int) -> Path:
        """Find the table a header speaks of: through an array of tables, its last one."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            self._note(path, at)
            if path in self._array_lengths:
                path = (*path, self._array_lengths[path] - 1)
        return path

    def _pair(self, table: Path) -> None:
        at, path = self._at, table
        for key in self._dotted_key():
            path = (*path, key)
            self._note(path, at)
        self._at += 1
        self._skip(_SPACE)
        self._value(path)

    def _dotted_key(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            keys.append(self._key())
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _key(self) -> str:
        if self._text[self._at] in "\"'":
            raw = self._take(_STRING)
            return raw[1:-1] if "\\" not in raw else str(tomllib.loads(f"key = {raw}")["key"])
        return self._take(_BARE_KEY)

    def _value(self, path: Path) -> None:
        opening = self._text[self._at]
        if opening == "[":
            self._list(path)
        elif opening == "{":
            self._inline_table(path)
        elif opening in "\"'":
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _list(self, path: Path) -> None:
        self._at += 1
        index = 0
        while not self._closes("]"):
            self._note((*path, index), self._at)
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while not self._closes("}"):
            self._pair(path)

    def _closes(self, bracket: str) -> bool:
        """Step over blanks, commas and the closing bracket; true when it was the bracket."""
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
            self._skip(_BLANK)
        if self._text[self._at] != bracket:
            return False
        self._at += 1
        return True

    def _note(self, path: Path, at: int) -> None:
        self.lines.setdefault(path, self._line(at))

    def _line(self, at: int) -> int:
        return bisect_right(self._line_starts, at)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._take(pattern)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, "the caller gave text that tomllib refuses"
        self._at = match.end()
        return match[0]
