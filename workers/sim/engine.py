"""The simulated engine as the runtime sees it."""

import asyncio
import json
import logging
from functools import partial

from prometheus_client import CollectorRegistry

from orchestrator import __version__
from orchestrator.wire.config import WorkerConfig
from orchestrator.wire.ids import LifeId
from workers.runtime.engine import App as AsgiApp
from workers.runtime.engine import Canary, Death, EngineConfigError, EngineStartError, Report
from workers.sim.app import App
from workers.sim.connector import Connector
from workers.sim.faults import Faults
from workers.sim.lockstep import Lockstep
from workers.sim.options import decode_options
from workers.sim.rendezvous import Rendezvous
from workers.sim.stepper import Stepper

log = logging.getLogger("dynorch.sim")

LOADING_STEPS = 4
"""Progress reports of a simulated load."""


class SimEngine:
    """A stepper, an application and the faults, made from one worker's configuration."""

    name = "sim"
    version = __version__

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._names = config.served_names or [config.model]
        self._stepper: Stepper | None = None
        self._rendezvous: Rendezvous | None = None
        self._connector: Connector | None = None
        self._dead = asyncio.Event()

    async def start(self, report: Report) -> AsgiApp:
        """Load nothing, for as long as the options say."""
        options = decode_options(self._config.options)
        if not all(self._names):
            raise EngineConfigError("the simulator needs a model name")
        faults = Faults(options.faults, self._config.life, self._die, self._freeze)
        stepper = Stepper(options, faults.on_tokens)
        self._stepper = stepper
        await faults.on_start()
        await self._meet(report)
        for step in range(LOADING_STEPS if options.startup else 0):
            report("loading simulated weights", 100.0 * step / LOADING_STEPS)
            await asyncio.sleep(options.startup / LOADING_STEPS)
        if stepper.death:
            raise EngineStartError(stepper.death)
        registry = CollectorRegistry()
        if options.kv_transfer is not None:
            self._connector = Connector(
                config=self._config, options=options, stepper=stepper, faults=faults,
                registry=registry, die=self._die,
            )  # fmt: skip
            stepper.connector = self._connector
            await self._connector.listen()
        log.info(
            "dynorch: %s: simulated engine for %s: %g prompt tokens a second, a step every %g s",
            self._config.life, ", ".join(self._names), options.prefill_rate, options.step,
        )  # fmt: skip
        return App(self._names, options, stepper, faults, registry)

    def models(self) -> list[str]:
        """Name the served models."""
        return self._names

    def canary(self) -> Canary:
        """Ask for one token."""
        body = {"model": self._names[0], "prompt": "ping", "max_tokens": 1}
        return Canary("/v1/completions", json.dumps(body).encode())

    async def wait_dead(self) -> Death:
        """Wait for a fault that kills the engine."""
        await self._dead.wait()
        assert self._stepper is not None
        return Death("engine-died", self._stepper.death)

    def tokens(self) -> int:
        """Count the tokens generated."""
        return self._stepper.tokens if self._stepper is not None else 0

    def busy(self) -> bool:
        """Say whether sequences wait for tokens."""
        stepper = self._stepper
        return stepper is not None and bool(stepper.running or stepper.waiting)

    async def ask(self) -> None:
        """Answer, unless a fault has silenced the engine."""
        assert self._stepper is not None
        if self._stepper.mute:
            await asyncio.get_running_loop().create_future()

    async def wait_fetched(self) -> None:
        """Wait until nobody's blocks are kept for another engine."""
        if self._connector is not None:
            await self._connector.wait_fetched()

    async def stop(self, timeout_s: float) -> None:  # noqa: ARG002 - leaving takes no time
        """Leave the gang, and whoever reads our blocks."""
        if self._connector is not None:
            await self._connector.close()
        if self._rendezvous is not None:
            self._rendezvous.close()

    async def _meet(self, report: Report) -> None:
        """Wait for the gang, if this worker has one; a peer that is lost later hangs the engine."""
        if self._config.gang is None:
            return
        life = LifeId.parse(self._config.life)
        gang = self._config.gang
        assert self._stepper is not None
        pace = self._stepper.pace = Lockstep(gang.member, gang.size, self._stepper)
        self._rendezvous = Rendezvous(life, gang, partial(self._freeze, True), pace.heard)
        pace.send = self._rendezvous.send
        await self._rendezvous.meet(report)

    def _die(self, why: str) -> None:
        assert self._stepper is not None
        self._stepper.die(why)
        self._dead.set()

    def _freeze(self, mute: bool) -> None:
        assert self._stepper is not None
        self._stepper.hung = True
        self._stepper.mute = mute
