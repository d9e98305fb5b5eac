"""One frontend's life, from the entry function to the exit status.

    bind the port -> first routing table -> its workers answer -> listen, Ready -> serve
    SIGTERM or Drain -> 503 to what is new, finish what is open, within a deadline -> exit 0
    64: its settings are wrong, or the port is taken

The port is bound before anything else, so that a conflict is known at once, and listened on only
when there is somebody to send requests to: until then our replicas on the same port get them all.
The daemon's death changes nothing here: the last table stands.
"""

import asyncio
import contextlib
import logging
import os
import socket
import sys

import uvloop
import zmq
from msgspec.structs import replace

from orchestrator import __version__
from orchestrator.wire import config as wire_config
from orchestrator.wire import messages
from orchestrator.wire.config import WorkerConfig
from orchestrator.wire.ids import LifeId
from orchestrator.wire.routes import Routes
from workers.frontend import options as settings
from workers.frontend import ports
from workers.frontend.app import App
from workers.frontend.listener import Listener
from workers.frontend.metrics import Metrics
from workers.frontend.options import Options, OptionsError
from workers.frontend.relay import Relay
from workers.frontend.subscription import Subscription
from workers.frontend.upstreams import Upstreams
from workers.runtime.control import Gauge, Identity, Session
from workers.runtime.engine import EXIT_CONFIG
from workers.runtime.sigterm import Sigterm

log = logging.getLogger("dynorch.frontend")

ENGINE = "frontend"
FIRST_ANSWERS_WITHIN_S = 2.0
"""How long the first table's workers may take to answer before we listen without them."""
YIELD_S = 1.0
"""How long open connections are still served while another frontend takes the new ones."""
LAST_BYTES_WITHIN_S = 2.0
"""How long clients may take to read what an answer's end says."""


def main(blob: bytes) -> int:
    """Serve until told to stop; return the exit status. Main thread only."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config = wire_config.decode(blob)
    try:
        options = settings.load(config.options)
        if not options.topology:
            options = replace(options, topology=LifeId.parse(config.life).of.topology)
        sock = ports.bind(options.host, options.port, options.topology)
    except OptionsError as error:
        return _refuse(config, "config", str(error))
    except ports.PortError as error:
        return _refuse(config, error.code, str(error))
    frontend = Frontend(replace(config, plane=_url(sock)), options, sock)
    frontend.sigterm.install()
    frontend.session.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(frontend.live())
    finally:
        frontend.session.close()


def _refuse(config: WorkerConfig, code: str, text: str) -> int:
    """Say why this frontend can't run, to the log and to the daemon."""
    log.error("dynorch: %s: %s", config.life, text)
    identity = Identity(ENGINE, __version__)
    session = Session(config, identity, lambda: Gauge(ready=False), list, lambda _s: None)
    session.start()
    session.say(messages.Bye(config.life, code, text))
    session.close()
    return EXIT_CONFIG


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Frontend:
    """Puts the parts together; decides nothing but their order."""

    def __init__(self, config: WorkerConfig, options: Options, sock: socket.socket) -> None:
        self.sigterm = Sigterm()
        identity = Identity(ENGINE, __version__)
        self.session = Session(config, identity, self._gauge, self._models, self._on_drain)
        self._config = config
        self._options = options
        self._ready = False
        self._asked_to_drain = False
        self._drain_within_s = options.drain_timeout_s
        self._first_table = asyncio.Event()
        self._answering = asyncio.Event()
        self._stop = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._upstreams = Upstreams(self._context, config.life, options.routing, self._on_answering)
        metrics = Metrics(config.life, self._upstreams.routable, self._upstreams.degraded)
        self._relay = Relay(self._upstreams, metrics, options)
        self._app = App(self._upstreams, self._relay, metrics, options)
        self._listener = Listener(self._app, sock, 2 * options.requests_max + 64)
        self._subscription = Subscription(
            self._context, config.events, options.topology, self._on_table, self._say_hello
        )

    async def live(self) -> int:
        """Run the whole life; return the exit status."""
        loop = asyncio.get_running_loop()
        self.sigterm.attach(loop)
        self.session.attach(loop)
        told = loop.create_task(self._told_by_signal())
        self._subscription.start()
        status = 0
        if await self._prepared():
            status = await self._serve()
        told.cancel()
        self._subscription.close()
        self._upstreams.close()
        self._context.destroy(linger=0)
        return status

    async def _serve(self) -> int:
        """Serve from listening to the end of the drain; return the exit status."""
        try:
            await self._listener.start()
        except OSError as error:
            # Bound long ago, listening only now: a stranger may have been quicker.
            refusal = ports.refused(self._options.host, self._options.port, error)
            log.warning("dynorch: %s: %s", self._config.life, refusal)
            self.session.say(messages.Bye(self._config.life, refusal.code, str(refusal)))
            return EXIT_CONFIG
        # In this order: a beat that says ready must not be heard before `Ready`.
        self.session.say(messages.Ready(self._config.life, self._models()))
        self._ready = True
        log.info("dynorch: %s: serving on %s", self._config.life, self._config.plane)
        await self._stop.wait()
        self._ready = False
        await self._drain()
        return 0

    async def _told_by_signal(self) -> None:
        await self.sigterm.came.wait()
        self._stop.set()

    async def _prepared(self) -> bool:
        """Wait for the first table and its workers; False if we are told to stop before."""
        if not await self._unless_stopped(self._first_table):
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWERS_WITHIN_S):
                return await self._unless_stopped(self._answering)
        return True

    async def _unless_stopped(self, event: asyncio.Event) -> bool:
        tasks = {asyncio.create_task(one.wait()) for one in (event, self._stop)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return not self._stop.is_set()

    async def _drain(self) -> None:
        """Finish what is open, answer 503 to what comes; past the deadline, end it visibly."""
        alone = not self._listener.make_way()
        self._app.yielding = not alone
        self._app.draining = True
        log.info(
            "dynorch: %s: stopping: %d requests are open; %s",
            self._config.life,
            self._app.open,
            "new ones get 503" if alone else "other frontends take the new ones",
        )
        if not alone:
            # Clients with an open connection are told with their next answer to make another.
            await asyncio.sleep(min(YIELD_S, self._drain_within_s))
            self._app.yielding = False
        if not await self._app.wait_idle(self._drain_within_s):
            log.warning("dynorch: %s: ending %d requests", self._config.life, self._app.open)
            self._relay.stop()
            await self._app.wait_idle(LAST_BYTES_WITHIN_S)
        await self._listener.finish(LAST_BYTES_WITHIN_S)
        if self._asked_to_drain:
            self.session.say(messages.Drained(self._config.life))

    # What the parts call.

    def _on_table(self, routes: Routes) -> None:
        if self._upstreams.apply(routes):
            self._first_table.set()

    def _on_answering(self) -> None:
        """The newest table is in force: whoever waits for that shouldn't wait for a beat."""
        self._answering.set()
        self.session.beat_soon()

    def _on_drain(self, deadline_s: float) -> None:
        self._asked_to_drain = True
        self._drain_within_s = deadline_s
        self._stop.set()

    def _say_hello(self) -> None:
        hello = messages.Hello(
            life=self._config.life,
            pid=os.getpid(),
            protocol=messages.PROTOCOL,
            version=__version__,
            engine=ENGINE,
            endpoint=self._config.plane,
            ready=self._ready,
            models=self._models(),
        )
        self.session.say(hello)

    def _models(self) -> list[str]:
        return [model for model, count in self._upstreams.routable().items() if count]

    def _gauge(self) -> Gauge:
        return Gauge(
            ready=self._ready,
            inflight=self._app.open,
            requests=self._app.requests,
            tokens=self._relay.writes,
            routes_version=self._upstreams.answering,
        )
