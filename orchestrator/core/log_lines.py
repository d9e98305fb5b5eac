"""Reading the log of a whole tree: who said what, and which words are about an end.

One file holds what every process of a worker's tree wrote, interleaved. vLLM's lines begin with
their process, `(Worker pid=12) ERROR 11-22 17:06:51 [file.py:9] text`, and it repeats that before
each line of a traceback. The root cause is never in the outermost process: it is told there "see
root cause above". So each *finding* (a traceback with its last line, or a single line that sounds
like an error) carries its depth, and whoever explains an end looks at the innermost first.

Nothing is read here but text: no clock, no file. Every length has a bound.
"""

import re
from collections.abc import Iterator

import msgspec

LINE_MAX = 240
"""Characters of a log line that a reason quotes; the log has the rest."""

READ_MAX = 2000
"""Characters of a line that are looked at: messages name their numbers before that."""

BLOCK_MAX = 80
"""Lines of one traceback that are kept; a deeper one loses its middle."""

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
QUIET = frozenset({"DEBUG", "INFO", "WARNING"})
"""Levels at which nobody says why it died: also a traceback at such a level was survived."""

FINDINGS_MAX = 200
"""An end is explained in the daemon's one loop, so it may not take long whatever was logged."""

INNERMOST, MIDDLE, OUTERMOST = 0, 1, 2

NOISE = (
    "resource_tracker: There appear to be",
    "There appear to be %d",
    "destroy_process_group() was not called",
    "nanobind: leaked",
    "FutureWarning",
    "DeprecationWarning",
    "Triton is installed, but doesn't include",
    "warnings.warn(",
)
"""What a dying Python, torch or vLLM prints after whatever happened: it explains nothing (G2)."""

WRAPPERS = (
    "Engine core initialization failed",
    "EngineCore failed to start",
    "EngineCore encountered a fatal error",
    "EngineCore encountered an issue",
    "EngineDeadError",
    "WorkerProc failed to start",
    "WorkerProc hit an exception",
    "WorkerProc initialization failed due to an exception in a background process",
    "AsyncLLM output_handler failed",
    "cancelled: Executor failed",
    "Executor failed.",
    "VLLM::EngineCore died",
)
"""Words that only say that something else failed, as told above them (G1)."""

PREFIX = re.compile(
    r"^(?:\((?P<process>[^()]{1,60}?) pid=\d+\) )?"
    r"(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
    r" \d\d-\d\d (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,]\d+)? (?:\[[^\]]*\] )?)?"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w]*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b(?::|$)")
QUOTED = re.compile(r"Worker failed with error ['\"](?P<text>.+?)['\"](?:, please check.*)?$")
TROUBLE = re.compile(
    r"\b[Ee]rror\b|ERROR|[Ff]ailed|FATAL|[Ff]atal|[Ee]xception|[Cc]annot|[Cc]an't|terminate called"
    r"|Segfault|Segmentation fault|Bus error|NCCL WARN|not found|[Dd]enied|[Rr]efused|panic"
    r"|\bXid\b|[Tt]ime-?out|[Tt]imed out|[Ff]ailure|[Uu]nable|already in use|EADDRINUSE"
    r"|out of memory|No space left|Too many open files|died unexpectedly"
)
NATIVE = re.compile(
    r"^\[rank|^\[[WEF]\d{4} |NCCL |gloo/|terminate called|!!!!!!!|Fatal Python error"
)
OURS = re.compile(r"^dynorch: [^ ]+#\d+: (?P<text>.+)$")
TRACEBACK = "Traceback (most recent call last):"
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
SECRETS = re.compile(
    r"\b(?:hf|sk|ghp|glpat|xox[abp])[_-][A-Za-z0-9_-]{8,}"
    r"|(?<=[Bb]earer )\S+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=token=)|(?<=token: )|(?<=password=)|(?<=password: )|(?<=api_key=)|(?<=api-key=)"
    r"|(?<=secret=))[^\s,;'\")]{4,}"
)


class Line(msgspec.Struct, frozen=True):
    """One line: who wrote it, at what level (empty: not a log record), when, and what is left.

    `at`: seconds of its day, None without a time stamp.
    """

    depth: int
    process: str
    level: str
    at: int | None
    text: str


class Finding(msgspec.Struct, frozen=True):
    """Something that sounds like an error: its telling line, and all the lines around it.

    `lines`: the exceptions of a chain of tracebacks, last first; else the one line. `block`: the
    whole of it as one text, with the line before. `under`: the line that follows the telling one.
    `number`: its place in the log. `traceback`: it is one.
    """

    depth: int
    process: str
    lines: tuple[str, ...]
    block: str
    under: str
    number: int
    traceback: bool


def parse(tail: str) -> list[Line]:
    """Split the end of a log into lines, each with its process. The first may be half a line."""
    found: list[Line] = []
    raw_depth, raw_process = OUTERMOST, ""
    for raw in tail.splitlines():
        text = plain(raw)
        match = PREFIX.match(text)
        assert match is not None, "every part of the prefix is optional"
        process, level = match["process"] or "", match["level"] or ""
        rest, depth = text[match.end() :], OUTERMOST
        at = None
        if match["hour"]:
            at = int(match["hour"]) * 3600 + int(match["minute"]) * 60 + int(match["second"])
        if process:
            depth = depth_of(process)
        elif rest.startswith("Process ") and rest.endswith(":"):
            # multiprocessing's own words about a child that raised; its traceback follows.
            process = rest[len("Process ") : -1]
            depth = raw_depth = depth_of(process)
            raw_process = process
        elif NATIVE.search(rest):
            depth = INNERMOST
        elif not level:
            process, depth = raw_process, raw_depth
        if raw_process and EXCEPTION.match(rest):
            raw_depth, raw_process = OUTERMOST, ""  # that was the end of its traceback
        found.append(Line(depth, process, level, at, rest))
    return found


def plain(raw: str) -> str:
    """Cut a line to what is looked at, without colours."""
    text = raw[:READ_MAX].rstrip()
    return ESCAPES.sub("", text) if "\x1b" in text else text


def level_of(raw: str) -> tuple[str, str]:
    """Split a line into its level and its text; quick, because it is done to all of a log."""
    text = plain(raw)
    if not text.startswith(("(", *LEVELS)):
        return "", text
    match = PREFIX.match(text)
    assert match is not None, "every part of the prefix is optional"
    return match["level"] or "", text[match.end() :]


def depth_of(process: str) -> int:
    """Place a process of vLLM's by its name."""
    if process.startswith(("Worker", "VllmWorker", "RayWorker")):
        return INNERMOST
    if process.startswith(("EngineCore", "DPCoordinator")):
        return MIDDLE
    return OUTERMOST


def recent(lines: list[Line], within_s: int, count: int) -> list[Line]:
    """Keep what was said shortly before the end: by the clock where lines have one, else the last.

    A ready worker's log holds errors of single requests that it has long survived.
    """
    last = next((line.at for line in reversed(lines) if line.at is not None), None)
    if last is None:
        return lines[-count:]
    begin, now = 0, last
    for number in range(len(lines) - 1, -1, -1):
        now = lines[number].at if lines[number].at is not None else now  # type: ignore[assignment]
        if (last - now) % 86400 > within_s:
            begin = number + 1
            break
    return lines[begin:]


def findings(lines: list[Line]) -> list[Finding]:
    """List what sounds like an error, in the order of the log, noise and mere wrappers left out."""
    found = list(_tracebacks(lines))
    inside = {number for block, _ in found for number in block}
    singles = [
        single(lines, number)
        for number, line in enumerate(lines)
        if number not in inside and sounds_bad(line)
    ]
    everything = [finding for _, finding in found] + singles
    told = [one for one in everything if not is_wrapper(one)]
    told.sort(key=lambda one: one.number)
    # Said again and again, it is one finding; and of very many the first and the last will do.
    distinct = list({(one.depth, one.lines, one.under): one for one in reversed(told)}.values())
    distinct.reverse()
    half = FINDINGS_MAX // 2
    return distinct if len(distinct) <= FINDINGS_MAX else distinct[:half] + distinct[-half:]


def single(lines: list[Line], number: int) -> Finding:
    """Make a finding of a line that isn't in a traceback."""
    line = lines[number]
    under = lines[number + 1].text.strip() if number + 1 < len(lines) else ""
    told = (unwrapped(line.text), *([under] if goes_on_below(line.text) else []))
    return Finding(line.depth, line.process, told, line.text, under, number, traceback=False)


def goes_on_below(text: str) -> bool:
    """Say whether an exception's words are in the line below its name."""
    return "validation error" in text or (text.endswith(":") and bool(EXCEPTION.match(text)))


def sounds_bad(line: Line) -> bool:
    """Say whether a line that isn't in a traceback may be about an end."""
    if line.level in QUIET or not line.text or is_noise(line.text):
        return False
    if OURS.match(line.text):
        return False
    if line.level:
        return True
    return bool(EXCEPTION.match(line.text) or TROUBLE.search(line.text))


def is_noise(text: str) -> bool:
    """Say whether this is said after every end."""
    return any(noise in text for noise in NOISE)


def is_wrapper(finding: Finding) -> bool:
    """Say whether it only points at another failure, in every line."""
    return all(any(word in line for word in WRAPPERS) for line in finding.lines)


def own_words(lines: list[Line]) -> str:
    """What the worker itself said last about its end: `dynorch: LIFE: why`."""
    for line in reversed(lines):
        match = OURS.match(line.text)
        if match is not None:
            return match["text"]
    return ""


def unwrapped(text: str) -> str:
    """Take the root cause out of a wrapper that quotes it."""
    match = QUOTED.search(text)
    return match["text"] if match is not None else text


def _tracebacks(lines: list[Line]) -> Iterator[tuple[set[int], Finding]]:
    """Each chain of tracebacks with the numbers of its lines. Processes interleave; follow each."""
    open_: dict[str, _Chain] = {}
    for number, line in enumerate(lines):
        if line.level in QUIET:
            continue
        key = f"{line.process}/{line.level}"
        chain = open_.get(key)
        if TRACEBACK in line.text:
            if chain is None or not chain.goes_on:
                if chain is not None and chain.exceptions:
                    yield chain.numbers, chain.finding()
                before = next((n for n in range(number - 1, -1, -1)
                               if lines[n].process == line.process), None)  # fmt: skip
                chain = open_[key] = _Chain(
                    number, line, "" if before is None else lines[before].text
                )
            chain.begin(number)
        elif chain is not None and not chain.take(number, line.text):
            if chain.exceptions:
                yield chain.numbers, chain.finding()
            del open_[key]
    for chain in open_.values():
        if chain.exceptions:
            yield chain.numbers, chain.finding()


class _Chain:
    """A traceback being read, and those that it says it follows from."""

    def __init__(self, number: int, line: Line, before: str) -> None:
        self.numbers: set[int] = set()
        self.exceptions: list[str] = []
        self.goes_on = False
        self._number, self._line = number, line
        self._texts = [before]
        self._under = ""
        self._in_frames = True
        self._rest = 0

    def begin(self, number: int) -> None:
        self.numbers.add(number)
        self.goes_on, self._in_frames = False, True

    def take(self, number: int, text: str) -> bool:
        """Take the next line of the same process; False when the chain is over."""
        if text.startswith(CHAINED):
            self.goes_on = True
        elif self._in_frames and text and not text.startswith((" ", "\t")):
            self.exceptions.append(unwrapped(text))
            self._in_frames, self._rest, self._under = False, 4, ""
        elif not self._in_frames and text:
            # What an exception says may have several lines; more than a few aren't its own.
            self._rest -= 1
            if self._rest < 0 or EXCEPTION.match(text) or OURS.match(text):
                return False
            if not self._under and goes_on_below(self.exceptions[-1]):
                self.exceptions.append(text.strip())
            self._under = self._under or text.strip()
        self.numbers.add(number)
        self._texts.append(text)
        return True

    def finding(self) -> Finding:
        kept = self._texts
        if len(kept) > BLOCK_MAX:
            kept = kept[: BLOCK_MAX // 2] + kept[-BLOCK_MAX // 2 :]
        return Finding(
            self._line.depth, self._line.process, tuple(reversed(self.exceptions)),
            "\n".join(kept), self._under, self._number, traceback=True,
        )  # fmt: skip


def last_line(tail: str) -> str:
    """Return the last line that says anything about an end."""
    for raw in reversed(tail.splitlines()):
        text = printable(raw)
        if text and not is_noise(text):
            return text
    return ""


def printable(text: str) -> str:
    """Make foreign text fit for one line of ours: no control characters or secrets, bounded."""
    plain = ESCAPES.sub("", text[: 4 * READ_MAX])
    clean = "".join(char if char.isprintable() else " " for char in plain).strip()
    clean = SECRETS.sub("***", clean)
    return clean if len(clean) <= LINE_MAX else clean[: LINE_MAX - 3] + "..."
