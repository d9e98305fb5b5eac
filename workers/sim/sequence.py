"""One sequence of tokens being generated: when it ends, and what may be shown of it so far.

Text that could still turn out to be the beginning of a stop string is held back, as vLLM does it:
a client must never see a part of what stopped its answer.
"""

import msgspec

from workers.sim import tokens


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
    """Generates one answer, token by token."""

    def __init__(self, index: int, prompt: list[int], limits: Limits) -> None:
        self.index = index
        self.prompt_tokens = len(prompt)
        self.generated = 0
        self.finish: str | None = None
        self.limits = limits
        self._state = tokens.state_of(prompt)
        self._text = ""
        self._shown = 0
        self._held = max(map(len, limits.stop), default=1) - 1
        self._stoppable = bool(limits.stop or limits.stop_token_ids)

    @property
    def tokens_max(self) -> int:
        """Most tokens whose keys and values this sequence can ever need to keep."""
        return self.prompt_tokens + self.limits.max_tokens

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
