"""The house rules that a machine can check: floors, sizes, banned calls, teaching docstrings.

Each rule is a function from a parsed file to complaints, so that a failing run prints every
complaint at once. The rules themselves are tested first: a rule that can't fail is no rule.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
COLUMNS_MAX = 100

# What each floor may import of ours, longest prefix first. Imports go down only.
FLOORS: dict[str, tuple[str, ...]] = {
    "orchestrator.wire": ("orchestrator.wire",),
    "orchestrator.topology": ("orchestrator.topology", "orchestrator.wire.ids"),
    "orchestrator.core": ("orchestrator.core", "orchestrator.wire.ids", "orchestrator.topology"),
    "orchestrator.host": ("orchestrator.host", "orchestrator.wire"),
    "orchestrator.daemon": (
        "orchestrator.daemon", "orchestrator.core", "orchestrator.host",
        "orchestrator.topology", "orchestrator.wire",
    ),
    "orchestrator.views": (
        "orchestrator.views", "orchestrator.wire", "orchestrator.daemon.client",
        "orchestrator.core.plan",
    ),
    "orchestrator.cli": (
        "orchestrator.cli", "orchestrator.views", "orchestrator.wire", "orchestrator.daemon",
        "orchestrator.topology", "orchestrator.core", "orchestrator.host",
    ),
    "workers": ("workers", "orchestrator.wire"),
}  # fmt: skip
WORKER_FLOORS = {
    "workers.runtime": ("workers.runtime",),
    "workers.vllm": ("workers.vllm", "workers.runtime"),
    "workers.sim": ("workers.sim", "workers.runtime"),
    "workers.frontend": ("workers.frontend", "workers.runtime"),
}
# Decisions are pure: these would let the clock, chance or the machine in.
CORE_BANNED = {
    "asyncio", "os", "time", "random", "logging", "zmq", "psutil", "socket", "subprocess",
    "datetime", "threading", "secrets", "uuid", "pathlib",
}  # fmt: skip
NAMES_BANNED = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}
# The doors through which an unforeseen exception may come: request boundary, link reader, entry.
BROAD_EXCEPT_ALLOWED = {
    "orchestrator/cli/main.py",
    "orchestrator/daemon/control.py",
    "workers/runtime/bridge.py",
    "workers/frontend/app.py",
}


class File(NamedTuple):
    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def parse(path: str, text: str) -> File:
    return File(path, text, ast.parse(text))


def files(*folders: str) -> list[File]:
    return [
        parse(str(path.relative_to(ROOT)), path.read_text())
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def imports(file: File) -> Iterator[tuple[int, str]]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def allowed_imports(module: str) -> tuple[str, ...] | None:
    for floor, own in WORKER_FLOORS.items():
        if within(module, (floor,)):
            return (*own, "orchestrator.wire")
    for floor, allowed in FLOORS.items():
        if within(module, (floor,)):
            return allowed
    return None


def floors(file: File) -> Iterator[str]:
    allowed = allowed_imports(file.module)
    if allowed is None:
        return
    for line, name in imports(file):
        # `from orchestrator import __version__` is no floor.
        ours = within(name, ("orchestrator", "workers", "tests"))
        if ours and name != "orchestrator.__version__" and not within(name, allowed):
            yield f"{file.path}:{line}: {file.module} may not import {name}"


def pure_core(file: File) -> Iterator[str]:
    if within(file.module, ("orchestrator.core",)):
        for line, name in imports(file):
            if name.split(".")[0] in CORE_BANNED:
                yield f"{file.path}:{line}: core is pure and may not import {name}"


def engine_kept_apart(file: File) -> Iterator[str]:
    if within(file.module, ("workers.vllm",)):
        return
    for line, name in imports(file):
        if name.split(".")[0] in {"vllm", "torch", "transformers"}:
            yield f"{file.path}:{line}: only workers.vllm may import {name}"


def sizes(file: File) -> Iterator[str]:
    lines = file.text.splitlines()
    if len(lines) > FILE_LINES_MAX:
        yield f"{file.path}: {len(lines)} lines; the shape is wrong past {FILE_LINES_MAX}"
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            yield f"{file.path}:{number}: {len(line)} columns"
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            doc = ast.get_docstring(node, clean=False)
            length -= len(doc.splitlines()) if doc else 0
            if length > FUNCTION_LINES_MAX:
                yield f"{file.path}:{node.lineno}: {node.name} has {length} lines"


def teaches(file: File) -> Iterator[str]:
    doc = ast.get_docstring(file.tree)
    if not doc and file.text.strip():
        yield f"{file.path}: the module doesn't say what its idea is"
    if Path(file.path).stem in NAMES_BANNED:
        yield f"{file.path}: named for nothing it holds"


def exceptions(file: File) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        names = (
            {child.id for child in ast.walk(node.type) if isinstance(child, ast.Name)}
            if (node.type)
            else {"bare"}
        )
        if "bare" in names or (
            names & {"Exception", "BaseException"} and file.path not in BROAD_EXCEPT_ALLOWED
        ):
            yield f"{file.path}:{node.lineno}: except {' '.join(sorted(names))}"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def banned_calls(file: File) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__del__":
            yield f"{file.path}:{node.lineno}: __del__"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in {"atexit.register", "time.time_ns", "os.system", "eval", "exec", "breakpoint"}:
            yield f"{file.path}:{node.lineno}: {name} is banned"
        if name == "time.sleep" and not file.path.startswith("tests/"):
            yield f"{file.path}:{node.lineno}: time.sleep; arm a deadline"


def no_sleep_in_tests(file: File) -> Iterator[str]:
    if file.path == "tests/eventually.py":
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and dotted(node.func) in {"time.sleep", "asyncio.sleep"}:
            argument = node.args[0] if node.args else None
            # Sleeping for ever until killed, or yielding once, is not waiting.
            zero = isinstance(argument, ast.Constant) and argument.value == 0
            long = isinstance(argument, ast.Constant) and float(argument.value or 0) >= 60
            if not (zero or long):
                yield f"{file.path}:{node.lineno}: a test sleeps; use eventually()"


HOUSE: list[Callable[[File], Iterator[str]]] = [
    floors, pure_core, engine_kept_apart, sizes, teaches, exceptions, banned_calls,
]  # fmt: skip


@pytest.mark.parametrize("rule", HOUSE, ids=lambda rule: rule.__name__)
def test_house(rule):
    found = [text for file in files("orchestrator", "workers") for text in rule(file)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [sizes, banned_calls, no_sleep_in_tests], ids=lambda r: r.__name__)
def test_tests_and_benchmarks(rule):
    folders = ["tests"] if rule is no_sleep_in_tests else ["tests", "benchmarks"]
    found = [text for file in files(*folders) for text in rule(file)]
    assert not found, "\n".join(found)


SINS = [
    (floors, "workers/sim/x.py", "import orchestrator.core.replica"),
    (floors, "orchestrator/core/x.py", "from orchestrator.host import shim"),
    (pure_core, "orchestrator/core/x.py", "import time"),
    (engine_kept_apart, "orchestrator/host/x.py", "import torch"),
    (sizes, "orchestrator/x.py", "\n" * 401),
    (sizes, "orchestrator/x.py", "def f():\n" + "    pass\n" * 61),
    (teaches, "orchestrator/x.py", "x = 1"),
    (teaches, "orchestrator/utils.py", '"""Doc."""'),
    (exceptions, "orchestrator/x.py", "try:\n    pass\nexcept Exception:\n    pass"),
    (exceptions, "orchestrator/x.py", "try:\n    pass\nexcept:\n    pass"),
    (banned_calls, "orchestrator/x.py", "import time\ntime.sleep(1)"),
    (no_sleep_in_tests, "tests/x.py", "import time\ntime.sleep(0.1)"),
]


@pytest.mark.parametrize(("rule", "path", "text"), SINS)
def test_each_rule_can_fail(rule, path, text):
    assert list(rule(parse(path, text)))


def test_nothing_names_a_machine():
    """A path of the machine it was written on has no business in the project."""
    words = ("/work" + "/main", "/tmp" + "/dv", "/tmp" + "/vv")
    found = [file.path for file in files("orchestrator", "workers", "tests", "benchmarks")
             if any(word in file.text for word in words)]  # fmt: skip
    assert not found
