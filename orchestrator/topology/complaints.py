"""What is wrong with a topology file, said so that the operator can fix it without a manual.

A complaint names file, line and key path, what is wrong, and what would be right. They are
collected and raised together: an operator with eight mistakes makes one trip, not eight.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

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
class Complaint:
    """One thing wrong. `line` counts from 1; 0 means the file as a whole."""

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
