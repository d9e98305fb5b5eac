"""The role's `vllm = {...}` table, parsed by vLLM's own parser: what it accepts, we accept.

Everything that vLLM can find wrong without loading anything is found here, so that a typo is
answered in the parser's own words and costs no start. Some of these checks vLLM itself makes only
after the whole model is loaded. Flags that only dynorch may set never come here: the topology's
loader has refused them.
"""

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser

from workers.runtime.engine import EngineConfigError

LINE_MAX = 500


class _Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """Raises where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise EngineConfigError(_one_line(message))


def parse(
    model: str, served_names: Sequence[str], options: Mapping[str, Any]
) -> argparse.Namespace:
    """Return what `vllm serve MODEL ...` would have parsed; EngineConfigError if it wouldn't."""
    args = _parse(argv(model, served_names, options))
    try:
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        raise EngineConfigError(first_line(error)) from error
    return args


def argv(model: str, served_names: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Spell `{a = true, b = false, c = [1, 2], d = {...}}` as `--a --no-b --c 1 2 --d {...}`."""
    flags = {name.replace("_", "-"): value for name, value in options.items()}
    if served_names:
        flags["served-model-name"] = list(served_names)
    words = ["--model", model]
    for name, value in flags.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            words += [f"--{name}", *(_word(each) for each in value)]
        else:
            words += [f"--{name}", _word(value)]
    return words


def known_flags() -> list[str]:
    """Name all that vLLM's parser knows, without dashes."""
    words = _parser()._option_string_actions  # noqa: SLF001 - there is no public list
    return sorted(word[2:] for word in words if word.startswith("--"))


def first_line(error: BaseException) -> str:
    """Reduce an exception to one line; a pydantic error, to its first complaint."""
    complaints = getattr(error, "errors", None)
    if callable(complaints) and (found := complaints()):
        return str(found[0].get("msg", found[0]))
    # str() of a KeyError is a repr.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return _one_line(text) or repr(error)


def _one_line(text: str) -> str:
    """Join what a complaint says; behind its first bracket pydantic only repeats the input."""
    said = text.split(" [type=", maxsplit=1)[0]
    return " ".join(said.split())[:LINE_MAX]


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = make_arg_parser(_Parser(prog="vllm serve"))
    return parser


def _parse(words: list[str]) -> argparse.Namespace:
    try:
        args: argparse.Namespace = _parser().parse_args(words)
    except SystemExit as error:
        raise EngineConfigError(f"`{' '.join(words)}` asks for help, not for an engine") from error
    except (TypeError, ValueError) as error:
        raise EngineConfigError(first_line(error)) from error
    return args


def _word(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | bool):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return str(value)
