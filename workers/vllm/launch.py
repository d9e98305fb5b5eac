"""vLLM's server without its server: engine, application and state, built as its own main does.

Imported only after the daemon has heard from the worker, because outside the zygote this import
takes ten seconds. What vLLM's `run_server` does between parsing and listening is done here step by
step: configuration, engine, application, state. Left out is everything about sockets and signals,
which belong to the runtime.
"""

import argparse
import types
from functools import partial
from typing import Any

import vllm.v1.utils
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from workers.runtime.engine import App, EngineConfigError
from workers.vllm import endings, forks
from workers.vllm.arguments import first_line

USAGE = UsageContext.OPENAI_API_SERVER


class TokenCount:
    """Tokens generated so far; written by vLLM's output handler, read by any thread."""

    def __init__(self) -> None:
        self.tokens = 0


class _Counter(StatLoggerBase):  # type: ignore[misc]
    """vLLM's interface for statistics, of which it says that it isn't stable."""

    def __init__(self, vllm_config: object, engine_index: int = 0, *, count: TokenCount) -> None:
        del vllm_config, engine_index
        self._count = count

    def record(
        self, scheduler_stats: object = None, iteration_stats: object = None, **_more: object
    ) -> None:
        del scheduler_stats
        self._count.tokens += getattr(iteration_stats, "num_generation_tokens", 0)

    def log_engine_initialized(self) -> None:
        pass


def configure(args: argparse.Namespace) -> Any:
    """Make vLLM's configuration; EngineConfigError if the flags or the model can't be.

    Loads the model's configuration and nothing else. An OSError isn't the operator's error: a
    model hub that can't be reached now may be reached later.
    """
    configure_logging_from_args(args)
    if args.enable_expert_parallel and current_platform.is_cpu():
        raise EngineConfigError(
            "vLLM's CPU build crashes with expert-parallel; leave it out, or run it on GPUs"
        )
    try:
        return AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=USAGE)
    except OSError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise EngineConfigError(first_line(error)) from error


def build_engine(config: Any, args: argparse.Namespace, method: str, count: TokenCount) -> Any:
    """Start the engine's processes and load the model; blocks for as long as that takes."""
    hygiene = forks.Hygiene()
    forks.insist(method)
    endings.spare_trackers(vllm.v1.utils)
    hygiene.begin()
    try:
        return AsyncLLM.from_vllm_config(
            vllm_config=config,
            usage_context=USAGE,
            stat_loggers=[partial(_Counter, count=count)],
            enable_log_requests=args.enable_log_requests,
            aggregate_engine_logging=args.aggregate_engine_logging,
            disable_log_stats=args.disable_log_stats,
        )
    finally:
        hygiene.end()


async def build_application(
    engine: Any, args: argparse.Namespace
) -> tuple[App, types.SimpleNamespace, tuple[str, ...]]:
    """Return the application, its notion of a server, and the tasks that the model supports.

    Without `app.state.server` vLLM answers every request after the engine's death with an
    AttributeError. It sets `should_exit` there when it has noticed the death.
    """
    # What vLLM made up to profile multi-modal inputs.
    await engine.reset_mm_cache()
    tasks = tuple(await engine.get_supported_tasks())
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    app.state.server = types.SimpleNamespace(should_exit=False)
    return app, app.state.server, tasks
