"""A question the frontend itself asks a worker through the request plane: `GET /v1/models`.

It is the proof that this frontend, and not only the daemon, gets answers from this worker; a
worker is routable here from then on. The answer is what `/v1/models` shows to clients.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.wire.plane import Head
from workers.frontend.retries import Failure

ANSWER_MAX = 1 << 20
"""A longer answer counts as a failure."""


class _Card(msgspec.Struct):
    id: str


class _Listing(msgspec.Struct):
    data: list[dict[str, Any]]


class Inquiry:
    """A sink that collects the answer and reports once: the entries, or why there are none."""

    def __init__(
        self, on_answer: Callable[[list[dict[str, Any]]], None], on_failure: Callable[[str], None]
    ) -> None:
        self._on_answer = on_answer
        self._on_failure = on_failure
        self._status = 0
        self._body = bytearray()

    def begin(self, head: Head) -> None:
        """Keep the status."""
        self._status = head.status

    def add(self, data: bytes) -> None:
        """Keep a piece."""
        if len(self._body) <= ANSWER_MAX:
            self._body += data

    def end(self) -> None:
        """Read the whole."""
        if self._status != 200 or len(self._body) > ANSWER_MAX:
            self._on_failure(f"GET /v1/models was answered with {self._status}")
            return
        try:
            listing = msgspec.json.decode(self._body, type=_Listing)
            for entry in listing.data:
                msgspec.convert(entry, _Card)
        except msgspec.DecodeError as error:
            self._on_failure(f"the answer to GET /v1/models can't be read: {error}")
            return
        self._on_answer(listing.data)

    def fail(self, failure: Failure, text: str) -> None:
        """Report why there is no answer."""
        self._on_failure(f"GET /v1/models was not answered: {text or failure.value}")
