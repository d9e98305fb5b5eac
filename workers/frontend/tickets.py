"""A ticket: where a prompt's KV cache lies on the prefill worker that made it.

An engine believes the parameters it is given. Those of another prompt, those used a second time,
and those whose lease has run out (the blocks hold somebody else's cache by then) give no error but
a wrong answer. So nobody here holds parameters, only tickets, and `spend` is the one door to what
is in them: it opens once, for the request that the ticket was issued for, before the deadline, and
while the life that issued it is still there. A void ticket is no mishap: prefill makes another.

Pure: the clock is an argument.
"""

import enum
import re
from typing import Annotated, Any

import msgspec

MARGIN_SHARE = 0.5
"""The part of a lease that is decode's. It takes a ticket, and then a handshake with a prefill that
it hasn't met may take five seconds, or its engine freezes: it must be found and ended before the
blocks are another's. By default that takes 57 s at most, and half of the lease is 60 s."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_SOME_TOKENS = re.compile(rb"\[\s*[0-9]")
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Void(enum.Enum):
    """Why a ticket gives its parameters to nobody (any more)."""

    USED = "the ticket was used before"
    FOREIGN = "the ticket belongs to another request"
    EXPIRED = "the ticket's deadline has passed"
    ORPHANED = "the prefill worker that issued the ticket is gone"


class _Params(msgspec.Struct):
    """What must be right in them; whatever else there is goes to decode as it came."""

    do_remote_prefill: bool
    remote_engine_id: Text
    remote_request_id: Text
    remote_host: str
    remote_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    remote_block_ids: list[Count | list[Count]]
    do_remote_decode: bool = False


class _Answer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    prompt_token_ids: msgspec.Raw = msgspec.Raw(b"null")


_answer = msgspec.json.Decoder(_Answer).decode
_params = msgspec.json.Decoder(_Params).decode


class Ticket:
    """Parameters, locked. `life`: who issued it; `deadline`: when it must have been spent."""

    __slots__ = ("_digest", "_params", "_used", "deadline", "life")

    def __init__(self, params: bytes, *, life: str, digest: bytes, deadline: float) -> None:
        self.life = life
        self.deadline = deadline
        self._params = params
        self._digest = digest
        self._used = False

    @property
    def used(self) -> bool:
        """Whether somebody has its parameters."""
        return self._used

    def spend(self, digest: bytes, now: float, *, alive: bool) -> bytes | Void:
        """Return the parameters, this once. `alive`: whether `life` is still connected."""
        if self._used:
            return Void.USED
        if digest != self._digest:
            return Void.FOREIGN
        if now >= self.deadline:
            return Void.EXPIRED
        if not alive:
            return Void.ORPHANED
        self._used = True
        return self._params

    def give_back(self) -> None:
        """Take it as not spent: whoever was to have it provably never began with the request."""
        assert self._used
        self._used = False


def issue(answer: bytes, *, life: str, digest: bytes, now: float, lease_s: float) -> Ticket | str:
    """Make a ticket of prefill's answer; if that holds none that can be used, say why.

    `now`: when the answer came. Prefill has counted its lease from a moment before.
    """
    try:
        said = _answer(answer)
        raw = bytes(said.kv_transfer_params)
        if raw == b"null":
            return "it gave no transfer parameters"
        params = _params(raw)
    except msgspec.DecodeError as error:
        return f"its transfer parameters can't be used: {error}"
    flaw = _flaw(params)
    if flaw:
        return f"its transfer parameters can't be used: {flaw}"
    deadline = now + lease_s - margin(lease_s)
    given = _with_tokens(raw, bytes(said.prompt_token_ids))
    return Ticket(given, life=life, digest=digest, deadline=deadline)


def _with_tokens(params: bytes, ids: bytes) -> bytes:
    """Add the prompt's tokens, where prefill told them: decode takes them for its prompt.

    They aren't decoded. Of a long prompt they cost decode a twentieth of what it spares by them:
    a template and a tokenizer.
    """
    if _SOME_TOKENS.match(ids) is None:
        return params
    return params[:-1] + b',"prompt_token_ids":' + ids + b"}"


def margin(lease_s: float) -> float:
    """How long before the lease's end a ticket expires."""
    return lease_s * MARGIN_SHARE


def _flaw(params: _Params) -> str:
    if not params.do_remote_prefill or params.do_remote_decode:
        return "they don't ask for a remote prefill"
    if params.remote_host not in LOOPBACK:
        return f"the cache lies on {params.remote_host!r}, not on this machine"
    if not _blocks(params.remote_block_ids):
        return "they name no block"
    return ""


def _blocks(ids: list[Any]) -> int:
    """Count blocks, in either of the two shapes: a list, or one list for each cache group."""
    return sum(len(one) if isinstance(one, list) else 1 for one in ids)
