"""What vLLM itself says of a role's flags, asked before anything is started.

Called in a fork of the zygote, where vLLM is imported already. Its parser stops at the first thing
that it doesn't like; so what it complains of is taken out and it is asked again, and an operator
with three mistakes makes one trip. The answer is a file that the environment names.
"""

import difflib
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from workers.runtime.engine import EngineConfigError

ANSWER_ENV = "DYNORCH_ANSWER"
ROUNDS_MAX = 20
_FLAG = re.compile(r"--(?:no-)?([a-z0-9][A-Za-z0-9._-]*)")
_LEAD = re.compile(r"argument -\S+: ")
_UNKNOWN = "unrecognized arguments"
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
"""Where a model's configuration says how many experts it has, as vLLM looks for it."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One role's flags; `ranks`: how many workers of a gang would run them."""

    model: str
    served_names: list[str] = []
    options: dict[str, Any] = {}
    ranks: int = 1


class Objection(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong, with which flag (empty: it can't be told), and what is near it.

    `dense`: it isn't a flag; the model has no experts, and ranks need them.
    """

    wrong: str
    flag: str = ""
    near: str = ""
    dense: bool = False


def main(blob: bytes) -> int:
    """Answer the question; an empty list: nothing is wrong."""
    question = msgspec.json.decode(blob, type=Question)
    Path(os.environ[ANSWER_ENV]).write_bytes(msgspec.json.encode(list(objections(question))))
    return 0


def objections(question: Question) -> Iterator[Objection]:
    """Everything that is wrong."""
    from workers.vllm import arguments  # noqa: PLC0415  imports vLLM

    options = dict(question.options)
    for _ in range(ROUNDS_MAX):
        try:
            arguments.parse(question.model, question.served_names, options)
        except EngineConfigError as error:
            text = str(error)
        else:
            break
        flags = [flag for flag in _flags(text) if flag in options or f"no-{flag}" in options]
        for flag in flags:
            yield _objection(text, flag, arguments.known_flags())
            options = {k: v for k, v in options.items() if k not in {flag, f"no-{flag}"}}
        if not flags:
            yield Objection(text)
            break
    if question.ranks > 1 and _is_dense(question):
        yield Objection("a dense model has no experts for data-parallel ranks to share", dense=True)


def _flags(text: str) -> list[str]:
    """The flags that a complaint is about: all of those it doesn't know, else the first."""
    found = list(dict.fromkeys(_FLAG.findall(text)))
    return found if text.startswith(_UNKNOWN) else found[:1]


def _objection(text: str, flag: str, known: list[str]) -> Objection:
    if not text.startswith(_UNKNOWN):
        return Objection(_LEAD.sub("", text, count=1), flag)
    near = difflib.get_close_matches(flag, known, n=1)
    return Objection("vLLM has no such flag", flag, near[0] if near else "")


def _is_dense(question: Question) -> bool:
    """Say whether the model's configuration, if it is on this machine, speaks of no experts."""
    config = _config(question)
    if config is None:
        return False
    text = config.get("text_config")
    tables = [config, *([text] if isinstance(text, dict) else [])]
    return not any(table.get(key) for table in tables for key in (*EXPERTS, "block_configs"))


def _config(question: Question) -> dict[str, Any] | None:
    path = Path(question.model).expanduser() / "config.json"
    if not path.is_file():
        hub = importlib.import_module("huggingface_hub")  # vLLM has it, and imported it
        revision = question.options.get("revision")
        try:
            cached = hub.try_to_load_from_cache(question.model, path.name, revision=revision)
        except ValueError:  # it isn't a name of a model either
            return None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
