"""One kind of failure as data, and how its words are looked for.

A row names words that a line of a log holds, and says what they mean, what to do, and through its
cause whether trying again can help: a cause of class `config` never is, until somebody changes
something. The rows themselves are in `failure_table`.

Words are substrings; " ... " in them stands for anything between; those that begin with "re:" are
a regular expression. `take` finds numbers and names in the line, for the texts: what stands in
[brackets] is left out if one of its names wasn't found.
"""

import enum
import re
from functools import lru_cache

import msgspec

from orchestrator.core.log_lines import Finding
from orchestrator.core.reasons import Cause


class When(enum.Enum):
    """In which part of a life a row can be the reason of its end."""

    BEFORE = "before ready"
    AFTER = "after ready"
    ANY = "any time"
    NEVER = "ends no life"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of failure. Several rows may share a `number`: the same failure in other words.

    `cause` counts before ready; after it only those that `STAYS` do. `near`: what the lines around
    it must hold as well; `seen`: what must have been said before it. `hearsay`: it tells of
    somebody else's failure, so any other row goes first. `hangs`: it can explain why a life that
    was ended for its silence was silent.
    """

    number: str
    cause: Cause
    when: When
    words: tuple[str, ...]
    says: str
    todo: str
    take: tuple[str, ...] = ()
    near: str = ""
    seen: str = ""
    hearsay: bool = False
    hangs: bool = False

    def finds(self, finding: Finding, before: str) -> str | None:
        """Return the line of a finding that holds the words, None if none does.

        `before`: the part of the log that was written earlier.
        """
        if self.near and self.near not in finding.block:
            return None
        if self.seen and self.seen not in before:
            return None
        return next((line for line in finding.lines if self.says_so(line)), None)

    def says_so(self, line: str) -> bool:
        """Say whether one line holds the words."""
        for words in self.words:
            if " ... " not in words and not words.startswith("re:"):
                if words in line:
                    return True
            elif pattern(words).search(line):
                return True
        return False

    def values(self, line: str) -> dict[str, str]:
        """Find the numbers and names that the texts want."""
        found: dict[str, str] = {}
        for take in self.take:
            match = re.search(take, line)
            if match is not None:
                found |= {name: text for name, text in match.groupdict().items() if text}
        return found


def row(  # noqa: PLR0917 - a line of a table is read by position
    number: str,
    cause: Cause,
    when: When,
    words: tuple[str, ...],
    says: str,
    todo: str,
    *,
    take: tuple[str, ...] = (),
    near: str = "",
    seen: str = "",
    hearsay: bool = False,
    hangs: bool = False,
) -> Row:
    """Write one row of the table."""
    return Row(
        number=number, cause=cause, when=when, words=words, says=says, todo=todo, take=take,
        near=near, seen=seen, hearsay=hearsay, hangs=hangs,
    )  # fmt: skip


@lru_cache(512)
def pattern(words: str) -> re.Pattern[str]:
    """Compile the words of a row that are more than one substring."""
    if words.startswith("re:"):
        return re.compile(words.removeprefix("re:"))
    return re.compile(".*?".join(re.escape(part) for part in words.split(" ... ")))


def fill(template: str, values: dict[str, str]) -> str:
    """Write a text with its numbers; a [part] whose names aren't known is left out."""

    def part(match: re.Match[str]) -> str:
        names = re.findall(r"{(\w+)}", match[1])
        return match[1] if all(name in values for name in names) else ""

    text = re.sub(r"\[([^\[\]]*)\]", part, template)
    text = re.sub(r"{(\w+)}", lambda match: values.get(match[1], "?"), text)
    return text.removeprefix(", ")
