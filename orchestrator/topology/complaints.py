"""What is wrong with a topology file, said so that the operator can fix it without a manual.

A complaint names file, line and key path, what is wrong, and what would be right. They are
collected and raised together: an operator with eight mistakes makes one trip, not eight.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

Path = tuple[str | int, ...]
"""Keys and list positions from the root of the file: `("roles", "decode", "gpus", 1)`."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def shown_path(path: Path) -> str:
    """Write the path as TOML writes dotted keys, list positions in brackets."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _BARE.fullmatch(step) else f'"{step}"'
            text += f".{key}" if text else key
    return text or "the file"


@dataclass(frozen=True)
class Finding:
    """A complaint before it knows its line.

    `uses`: what the judgement rests on besides `path`; when one of these is wrong itself, the
    finding would be guesswork and is dropped.
    """

    path: Path
    wrong: str
    right: str
    uses: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Complaint:
    """One thing wrong. `line` counts from 1; 0 where there is no line, as in a missing file."""

    file: str
    line: int
    path: Path
    wrong: str
    right: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {shown_path(self.path)}: {self.wrong}; {self.right}"


class Invalid(Exception):
    """The file can't be used; `complaints` is never empty and is in the order of the file."""

    def __init__(self, complaints: Iterable[Complaint]) -> None:
        self.complaints = sorted(complaints, key=lambda each: (each.line, shown_path(each.path)))
        assert self.complaints
        super().__init__("\n".join(str(each) for each in self.complaints))


@dataclass(frozen=True)
class Source:
    """Where a topology was written. No part of its value: all sources are equal."""

    file: str = field(default="", compare=False)
    lines: dict[Path, int] = field(default_factory=dict, compare=False, repr=False)

    def complaint(self, finding: Finding) -> Complaint:
        """Give the finding its line: that of its key, or of the nearest table around it."""
        steps = range(len(finding.path), 0, -1)
        found = (self.lines[finding.path[:n]] for n in steps if finding.path[:n] in self.lines)
        return Complaint(self.file, next(found, 1), finding.path, finding.wrong, finding.right)
