"""The seam between the runtime, which is the same in every worker, and the engine it hosts.

An engine is whatever produces an ASGI application and can say how it fares. The runtime owns the
process around it: signals, the control session with the daemon, the request plane, readiness,
drain and the exit status. So an engine never touches a socket of ours, never installs a signal
handler and never exits the process; it raises or returns, and the runtime decides what that means.

Order of calls: `start` once; then `models`, `canary`, `wait_dead` and the application, all on the
event loop's thread; then `stop` once, also if `start` failed or was interrupted half-way.
`tokens` and `busy` are read from another thread.

SIGTERM during `start` cancels it: `asyncio.CancelledError` comes out of whatever it awaits or,
when it blocks the loop, out of the very Python code that is running. So clean up in `finally`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Report = Callable[[str, float | None], None]
"""`report(text, percent)`: what the start is doing now. Safe from any thread, never blocks; when
called faster than the session sends, the newest wins."""

EXIT_CONFIG = 64
"""The configuration is wrong: starting again can't help."""
EXIT_INIT = 70
"""The engine didn't start, or didn't answer its first request."""
EXIT_DIED = 71
"""The engine died while serving."""


class EngineConfigError(Exception):
    """The operator's settings are wrong; the text says which and what would be right."""


class EngineStartError(Exception):
    """The engine could not start; the text is the root cause in one line."""


class Death(msgspec.Struct, frozen=True):
    """Why a running engine is of no more use. `code` is a value of `core.reasons.Cause`."""

    code: str
    text: str


class Canary(msgspec.Struct, frozen=True):
    """The request that proves an engine: one token through the worker's own request plane."""

    path: str
    body: bytes
    method: str = "POST"
    tokens: int = 1
    """Tokens that its answer costs the engine; they are nobody's, and left out of our figures."""


class Engine(Protocol):
    """One engine, hosted in this process."""

    @property
    def name(self) -> str:
        """`vllm` or `sim`."""

    @property
    def version(self) -> str:
        """The engine's version, for people."""

    async def start(self, report: Report) -> App:
        """Bring the engine up and return its application.

        May block the event loop for as long as it takes: beats and SIGTERM go on meanwhile. The
        application's lifespan is driven by the runtime, after this returns. Raises
        EngineConfigError, EngineStartError, or anything else, which counts as the latter.
        """

    def models(self) -> list[str]:
        """Name the models that requests may use; called when `start` has returned."""

    def canary(self) -> Canary:
        """Make the first request: it produces a token and warms up what first requests compile."""

    async def wait_dead(self) -> Death:
        """Return when the engine has died; never, while it lives.

        Awaited from the moment it is ready; cancelled when the worker stops. An engine that must
        be polled polls in here, at a rate that costs nothing.
        """

    def tokens(self) -> int:
        """Tokens produced so far; only grows. A plain read: the control thread calls it."""

    def busy(self) -> bool:
        """Whether the engine has work that is to make tokens. A plain read, like `tokens`."""

    async def ask(self) -> None:
        """Let every process of the engine answer: a round trip that costs next to nothing.

        Called while it is ready and no tokens flow, one at a time. Returns when all have answered,
        so perhaps never. Whatever it raises counts as an answer.
        """

    async def wait_fetched(self) -> None:
        """Return when nobody will fetch anything more of what finished requests have left here.

        A prefill keeps the KV cache of a request for the decode worker that is to read it. Called
        when a drain has seen the last request end, and cancelled at the drain's deadline.
        """

    async def stop(self, timeout_s: float) -> None:
        """Free everything the engine holds; requests have ended before this is called.

        What isn't free after `timeout_s` is left to the shim, which empties the tree.
        """
