"""Server-sent events, as far as a frontend must know them: where one ends.

An engine of ours writes whole events. A server behind HTTP is read as its bytes arrive, so half an
event may be all that there is when it dies; and a client that got half of one can be told nothing
any more, because what follows would be part of it. So what comes after the last blank line waits
for the rest of its event. Nothing is parsed, and bodies that are no events don't come here.
"""

from orchestrator.wire.plane import Headers

EVENT_MAX = 256 * 1024
"""Bytes that wait for the end of their event. An event that is longer leaves in pieces of about
that size; if the stream is cut within it, its client has half an event before the error."""
ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""How an event may end; a mixture of them isn't written by anybody."""
_REACH = max(map(len, ENDS)) - 1


def is_stream(headers: Headers) -> bool:
    """Whether an answer consists of events that can be read, and so can be ended with another."""
    named = {name.lower(): value.strip().lower() for name, value in headers}
    if named.get(b"content-encoding", b"identity") != b"identity":
        return False
    return named.get(b"content-type", b"").startswith(b"text/event-stream")


class WholeEvents:
    """Holds back the beginning of an event that isn't complete."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def take(self, data: bytes) -> bytes:
        """Return what may leave now that `data` has come."""
        unsearched = max(0, len(self._held) - _REACH)
        data = self._held + data
        found = ((data.rfind(mark, unsearched), len(mark)) for mark in ENDS)
        end = max((at + length for at, length in found if at >= 0), default=0)
        if len(data) - end > EVENT_MAX:
            end = len(data)
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """Return what is left, once no more comes."""
        held, self._held = self._held, b""
        return held
