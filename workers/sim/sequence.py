"""One sequence of tokens being generated: when it ends, and what may be shown of it so far.

It goes on from what its blocks hold, which is the prompt, unless they were filled from elsewhere.

Text that could still turn out to be the beginning of a stop string is held back, as vLLM does it:
a client must never see a part of what stopped its answer.
"""

from typing import Any

import msgspec

from workers.sim import tokens
from workers.sim.ticket import Wish


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What ends a sequence. `ends_itself`: whether the model may (see `tokens.wants_to_end`)."""

    max_tokens: int
    min_tokens: int = 0
    ends_itself: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    keep_stop: bool = False


class Delta(msgspec.Struct, frozen=True, gc=False):
    """One generated token. `state` is what it followed from; `text` what may now be shown."""

    index: int
    token: int
    text: str
    finish: str | None
    stop_reason: str | int | None
    state: int


class Sequence:
    """Generates one answer, token by token. `name`: the engine's name for it.

    Blocks that it holds: `blocks` by number, for its prompt, and so many more are `promised`.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        limits: Limits,
        wish: Wish | None = None,
        name: str = "",
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.limits = limits
        self.wish = wish
        self.name = name
        self.generated = 0
        self.finish: str | None = None
        self.blocks: list[int] = []
        self.promised = 0
        self.lent: dict[str, Any] | None = None
        self._state = 0
        self._text = ""
        self._shown = 0
        self._held = max(map(len, limits.stop), default=1) - 1
        self._stoppable = bool(limits.stop or limits.stop_token_ids)

    @property
    def tokens_max(self) -> int:
        """Most tokens whose keys and values this sequence can ever need to keep."""
        return len(self.prompt) + self.limits.max_tokens

    def go_on_from(self, read: list[int]) -> None:
        """Begin: `read` is what the blocks hold."""
        self._state = tokens.state_of(read)

    def advance(self) -> Delta:
        """Generate the next token."""
        assert self.finish is None
        state, limits = self._state, self.limits
        self.generated += 1
        may_end = self.generated >= limits.min_tokens
        if limits.ends_itself and may_end and tokens.wants_to_end(state):
            self.finish = "stop"
            return Delta(self.index, tokens.EOS, self._show(), "stop", None, state)
        token = tokens.next_token(state)
        self._state = tokens.mix(state, token)
        self._text += tokens.TEXTS[token]
        stop_reason = self._stopped_by(token) if may_end and self._stoppable else None
        if stop_reason is not None:
            self.finish = "stop"
        elif self.generated >= limits.max_tokens:
            self.finish = "length"
        return Delta(self.index, token, self._show(), self.finish, stop_reason, state)

    def _stopped_by(self, token: int) -> str | int | None:
        """Cut the text at the first stop string in it; the string or token id that stopped."""
        piece = tokens.TEXTS[token]
        if token in self.limits.stop_token_ids:
            self._text = self._text[: -len(piece)]
            return token
        begin = max(0, len(self._text) - len(piece) - self._held)
        found = [
            (at, stop) for stop in self.limits.stop if (at := self._text.find(stop, begin)) >= 0
        ]
        if not found:
            return None
        at, stop = min(found)
        self._text = self._text[: at + (len(stop) if self.limits.keep_stop else 0)]
        return stop

    def _show(self) -> str:
        end = len(self._text) if self.finish else len(self._text) - self._held
        if end <= self._shown:
            return ""
        text, self._shown = self._text[self._shown : end], end
        return text
