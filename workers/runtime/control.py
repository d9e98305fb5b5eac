"""The worker's half of the lease: a thread that beats even while the event loop can't.

Building an engine may block the loop for a minute, and a hung engine may block it for ever. The
daemon must be able to tell these from death, so the session lives in a plain thread with a ZeroMQ
context of its own, and each beat carries the age of the loop's last turn as a fact.

The session outlives daemons. What must be said (`Hello`, `Ready`, ...) waits in one slot per kind
of message, newest wins, until a daemon is there to hear it; beats that nobody can hear are
dropped, because an old beat is worth nothing. A new daemon learns about us by `Greet`.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

import msgspec
import zmq

from orchestrator.wire import messages
from orchestrator.wire.config import WorkerConfig
from orchestrator.wire.sockets import Context, Socket, make_socket
from workers.runtime.pulse import Awake

BEATS_QUEUED_MAX = 16
"""Messages a stalled daemon may leave in our pipe; further beats are dropped."""
RECONNECT_MS = 50
RECONNECT_MAX_MS = 500
HANDSHAKE_MS = 2000
"""A daemon that accepts and says nothing (half dead, or its socket held by a child) is left."""
TELL_PLACE_AFTER_S = 1.0
"""A loop that hasn't turned for so long is worth a look at what the main thread does."""
FLUSH_S = 0.5
"""How long last words may wait for a daemon that isn't reading."""

ORDER = (messages.Hello, messages.Progress, messages.Ready, messages.Drained, messages.Bye)
"""In which order what waits is said."""


class Gauge(msgspec.Struct, frozen=True):
    """What a beat tells; read by the control thread, so every field is a plain value."""

    ready: bool
    inflight: int = 0
    requests: int = 0
    tokens: int = 0
    routes_version: int = 0
    engine_age_s: float = 0.0
    suspect: str = ""
    stopped: bool = False
    stalled_s: float = 0.0
    canaries_missed: int = 0
    canary_fault: str = ""


class Identity(msgspec.Struct, frozen=True):
    """What `Hello` tells beyond the configuration."""

    engine: str
    version: str


class Session:
    """One worker's conversation with whichever daemon is there.

    `gauge` and `models` are called from the control thread; `on_drain(deadline_s)` on the loop.
    """

    def __init__(
        self,
        config: WorkerConfig,
        identity: Identity,
        gauge: Callable[[], Gauge],
        models: Callable[[], list[str]],
        on_drain: Callable[[float], None],
    ) -> None:
        self.awake = Awake(config.beat_period_s)
        self._config = config
        self._identity = identity
        self._gauge = gauge
        self._models = models
        self._on_drain = on_drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: dict[type, messages.FromWorker] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._beat_early = False
        self._probed_at: float | None = None
        self._seq = 0
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Say hello, and begin to beat."""
        self._slots[messages.Hello] = self._hello()
        self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch this loop's turns and give it the daemon's orders."""
        self._loop = loop

    def say(self, message: messages.FromWorker) -> None:
        """Send when possible; a newer message of the same kind replaces one that still waits."""
        self._slots[type(message)] = message
        os.eventfd_write(self._wake, 1)

    def beat_soon(self) -> None:
        """Beat before it is due: something in the gauge has changed that somebody waits for."""
        self._beat_early = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Say what still waits, if someone listens within FLUSH_S, and end the thread."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(FLUSH_S * 4)
        if not self._thread.is_alive():
            os.close(self._wake)

    # Everything below runs in the control thread.

    def _run(self) -> None:
        context: Context = zmq.Context()
        socket = make_socket(context, zmq.DEALER, hwm=BEATS_QUEUED_MAX)
        socket.routing_id = self._config.life.encode()
        # Without a daemon nothing is queued: a new one must not hear a dead hour's beats.
        socket.immediate = True
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_MAX_MS
        socket.handshake_ivl = HANDSHAKE_MS
        socket.connect(self._config.control)
        try:
            self._converse(socket)
        finally:
            socket.close(linger=int(FLUSH_S * 1000))
            context.term()

    def _converse(self, socket: Socket) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        beat_at = time.monotonic()
        while not self._closing:
            now = time.monotonic()
            if now >= beat_at or self._beat_early:
                self._beat_early = False
                beat_at = max(min(beat_at, now) + self._config.beat_period_s, now)
                self.awake.tick(now)
                self._beat(socket)
            # Asking for POLLOUT only while something waits keeps an idle session asleep.
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if self._slots else 0))
            poller.poll(max(0, int((beat_at - time.monotonic()) * 1000) + 1))
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._listen(socket)
            self._speak(socket)
        give_up_at = time.monotonic() + FLUSH_S
        while self._slots and time.monotonic() < give_up_at:
            socket.poll(50, zmq.POLLOUT)
            self._speak(socket)

    def _speak(self, socket: Socket) -> bool:
        """Send what waits; False if the daemon can't be reached now."""
        for kind in ORDER:
            message = self._slots.pop(kind, None)
            if message is None:
                continue
            try:
                socket.send(messages.encode(message), zmq.NOBLOCK)
            except zmq.Again:
                # Unless a newer one has come meanwhile.
                self._slots.setdefault(kind, message)
                return False
        return True

    def _listen(self, socket: Socket) -> None:
        for _ in range(BEATS_QUEUED_MAX):
            try:
                payload = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = messages.decode_at_worker(payload)
            except msgspec.DecodeError as error:
                sys.stderr.write(f"dynorch: the daemon said what we don't understand: {error}\n")
                continue
            self._obey(message)

    def _obey(self, message: messages.ToWorker) -> None:
        if isinstance(message, messages.Greet):
            self.say(self._hello())
        elif isinstance(message, messages.Drain):
            self._on_loop(self._on_drain, message.deadline_s)

    def _beat(self, socket: Socket) -> None:
        gauge = self._gauge()
        # `Ready` is posted before the gauge shows it, so said here it is never heard after.
        if not self._speak(socket):
            return
        self._seq += 1
        loop_age_s = self._probe_loop()
        beat = messages.Beat(
            life=self._config.life,
            seq=self._seq,
            period_s=self._config.beat_period_s,
            loop_age_s=loop_age_s,
            loop_at=_place() if loop_age_s > TELL_PLACE_AFTER_S else "",
            **msgspec.structs.asdict(gauge),
        )
        # Nobody there or nobody reading: the next beat says it better.
        with contextlib.suppress(zmq.Again):
            socket.send(messages.encode(beat), zmq.NOBLOCK)

    def _probe_loop(self) -> float:
        """Age of the oldest turn we asked for and didn't get: one callback per beat at most."""
        probed_at = self._probed_at
        if probed_at is not None:
            return self.awake.s - probed_at
        if self._loop is not None:
            self._probed_at = self.awake.s
            self._on_loop(self._turned)
        return 0.0

    def _turned(self) -> None:
        self._probed_at = None

    def _on_loop(self, callback: Callable[..., None], *args: object) -> None:
        if self._loop is not None:
            # A loop that is closed has a worker that is leaving: nothing to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(callback, *args)

    def _hello(self) -> messages.Hello:
        return messages.Hello(
            life=self._config.life,
            pid=os.getpid(),
            protocol=messages.PROTOCOL,
            version=self._identity.version,
            engine=self._identity.engine,
            endpoint=self._config.plane,
            ready=self._gauge().ready,
            models=self._models(),
        )


def _place() -> str:
    """Where the main thread is now: function, file and line. The loop runs nowhere else."""
    main = threading.main_thread().ident
    frame = None if main is None else sys._current_frames().get(main)  # noqa: SLF001
    if frame is None:
        return ""
    file = os.path.basename(frame.f_code.co_filename)  # noqa: PTH119
    return f"{frame.f_code.co_name} ({file}:{frame.f_lineno})"
