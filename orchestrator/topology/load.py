"""From a file to a topology, or to everything that is wrong with it, all at once.

The stages: bytes to text, text to a tree (`tomllib`), variables expanded, each key judged on its
own (pydantic), the whole judged together (`checks`). A later stage works with what the earlier ones
could save, so that an operator sees all mistakes in one run; only a file that isn't TOML at all
ends after the first.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path as FilePath

from orchestrator.topology.checks import cross_check
from orchestrator.topology.complaints import Complaint, Finding, Invalid, Path, Source
from orchestrator.topology.lines import key_lines
from orchestrator.topology.salvage import lies_in, rests_on, salvage
from orchestrator.topology.schema import Topology, inherit
from orchestrator.topology.variables import expand, referenced_variables

__all__ = ["FILE_BYTES_MAX", "Invalid", "load", "parse", "referenced_variables"]

FILE_BYTES_MAX = 2**20
"""A topology is written by hand; what is larger is another kind of file."""
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def load(path: str | FilePath, variables: Mapping[str, str]) -> Topology:
    """Read a topology file; `variables` is what `${...}` may name. Raises Invalid."""
    file = str(path)
    try:
        with FilePath(path).open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        why = error.strerror or str(error)
        raise _refused(file, 0, f"can't be read: {why}", "check the path") from None
    if len(raw) > FILE_BYTES_MAX:
        raise _refused(file, 0, "is larger than 1 MiB", "give the path of a topology file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _refused(file, line, "isn't UTF-8 here", "save it as UTF-8") from None
    return parse(text, file, variables)


def parse(text: str, file: str, variables: Mapping[str, str]) -> Topology:
    """Like `load`, from the text; `file` is only named in complaints."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(file, text, error) from None
    except RecursionError:
        raise _refused(file, 0, "is nested too deeply", "write it with fewer brackets") from None
    source = Source(file, key_lines(text))
    tree, expanded, findings = expand(raw, variables)
    unset = {finding.path for finding in findings}
    written, more, bad = salvage(tree, expanded)
    findings += [each for each in more if not lies_in(each.path, unset)]
    findings += [each for each in cross_check(written) if not _guesswork(each, bad | unset)]
    if findings:
        raise Invalid(source.complaint(finding) for finding in dict.fromkeys(findings))
    return inherit(written).located(source)


def _guesswork(finding: Finding, bad: set[Path]) -> bool:
    return lies_in(finding.path, bad) or any(rests_on(path, bad) for path in finding.uses)


def _not_toml(file: str, text: str, error: tomllib.TOMLDecodeError) -> Invalid:
    message = str(error)
    position = _POSITION.search(message)
    line = int(position[1]) if position and position[1] else text.count("\n") + 1
    what = _POSITION.sub("", message).rstrip(".")
    right = "correct the syntax; nothing else was checked"
    return _refused(file, line, f"not TOML: {what}", right)


def _refused(file: str, line: int, wrong: str, right: str) -> Invalid:
    return Invalid([Complaint(file, line, (), wrong, right)])
