"""From tokens to JSON: the two dialects, each whole and in pieces.

A dialect knows how one request's tokens look in /v1/completions or /v1/chat/completions. It holds
no state but what a whole answer must remember; a stream's events are built and forgotten.
"""

import time
from typing import Protocol

import msgspec
from msgspec import UNSET

from workers.sim import shapes, tokens
from workers.sim.requests import Job
from workers.sim.sequence import Delta


class Heading(msgspec.Struct, frozen=True):
    """What stands at the top of every body of one answer."""

    id: str
    model: str
    created: int


def heading(kind: str, request_id: str, model: str) -> Heading:
    """Name an answer after the client's request id."""
    return Heading(f"{kind}-{request_id}", model, int(time.time()))


class Dialect(Protocol):
    """How one endpoint says it."""

    head: Heading

    def opening(self, index: int) -> bytes:
        """Say what comes before a choice's first token; may be nothing."""

    def piece(self, delta: Delta, usage: shapes.Usage | None) -> bytes:
        """Encode one event of a stream."""

    def usage(self, usage: shapes.Usage) -> bytes:
        """Encode the event that ends a stream of someone who asked for usage."""

    def whole(
        self, answers: list[list[Delta]], usage: shapes.Usage, lent: shapes.Lent = UNSET
    ) -> bytes:
        """Encode a body with all answers, in the order of their indices."""


class Completions:
    """/v1/completions."""

    def __init__(self, job: Job, head: Heading) -> None:
        self._job = job
        self.head = head
        self._offsets = [0] * (len(job.prompts) * job.choices)
        self._begun: set[int] = set()

    def opening(self, index: int) -> bytes:
        """Echo the prompt if asked to."""
        if not self._job.echo:
            return b""
        return self._event([shapes.CompletionChoice(index, self._echo(index))])

    def piece(self, delta: Delta, usage: shapes.Usage | None) -> bytes:
        """One event."""
        choice = self._choice(delta.index, delta.text, [delta])
        if delta.index in self._begun:
            choice.prompt_token_ids = UNSET
        self._begun.add(delta.index)
        return self._event([choice], usage or UNSET)

    def usage(self, usage: shapes.Usage) -> bytes:
        """Encode the usage event."""
        return self._event([], usage)

    def whole(
        self, answers: list[list[Delta]], usage: shapes.Usage, lent: shapes.Lent = UNSET
    ) -> bytes:
        """Encode all answers."""
        choices = [
            self._choice(index, self._echo(index) + "".join(d.text for d in deltas), deltas)
            for index, deltas in enumerate(answers)
        ]
        body = self._completion(choices, usage)
        body.kv_transfer_params = lent
        return shapes.encode(body)

    def _echo(self, index: int) -> str:
        return tokens.decode(self._prompt(index)) if self._job.echo else ""

    def _prompt(self, index: int) -> list[int]:
        return self._job.prompts[index // self._job.choices]

    def _choice(self, index: int, text: str, deltas: list[Delta]) -> shapes.CompletionChoice:
        last = deltas[-1]
        choice = shapes.CompletionChoice(
            index, text, None, finish_reason=last.finish, stop_reason=last.stop_reason
        )
        if self._job.logprobs is not None:
            choice.logprobs = self._logprobs(index, deltas, self._job.logprobs)
        if self._job.token_ids:
            choice.token_ids = [delta.token for delta in deltas]
            choice.prompt_token_ids = self._prompt(index)
        return choice

    def _logprobs(self, index: int, deltas: list[Delta], top: int) -> shapes.CompletionLogprobs:
        found = shapes.CompletionLogprobs()
        for delta in deltas:
            rivals = tokens.candidates(delta.state, max(top, 1))
            text = tokens.TEXTS[delta.token]
            found.text_offset.append(self._offsets[index])
            self._offsets[index] += len(text)
            found.tokens.append(text)
            found.token_logprobs.append(rivals[0][1])
            found.top_logprobs.append({tokens.TEXTS[token]: p for token, p in rivals})
        return found

    def _completion(
        self, choices: list[shapes.CompletionChoice], usage: shapes.Usage | msgspec.UnsetType
    ) -> shapes.Completion:
        head = self.head
        return shapes.Completion(head.id, head.created, head.model, choices, usage)

    def _event(
        self,
        choices: list[shapes.CompletionChoice],
        usage: shapes.Usage | msgspec.UnsetType = UNSET,
    ) -> bytes:
        return _event(self._completion(choices, usage))


class Chats:
    """/v1/chat/completions."""

    def __init__(self, job: Job, head: Heading) -> None:
        self._job = job
        self.head = head

    def opening(self, index: int) -> bytes:
        """Say who speaks; the prompt's ids come with it."""
        piece = shapes.ChatPiece(index, shapes.Said(role="assistant", content=""))
        event = self._chat_event([piece])
        if self._job.token_ids:
            event.prompt_token_ids = self._job.prompts[0]
        return _event(event)

    def piece(self, delta: Delta, usage: shapes.Usage | None) -> bytes:
        """Encode one event."""
        piece = shapes.ChatPiece(
            delta.index, shapes.Said(content=delta.text), self._logprobs([delta]), delta.finish
        )
        if delta.finish:
            piece.stop_reason = delta.stop_reason
        if self._job.token_ids:
            piece.token_ids = [delta.token]
        return _event(self._chat_event([piece], usage or UNSET))

    def usage(self, usage: shapes.Usage) -> bytes:
        """Encode the usage event."""
        return _event(self._chat_event([], usage))

    def whole(
        self, answers: list[list[Delta]], usage: shapes.Usage, lent: shapes.Lent = UNSET
    ) -> bytes:
        """Encode all answers."""
        choices = [self._choice(index, deltas) for index, deltas in enumerate(answers)]
        head = self.head
        chat = shapes.Chat(head.id, head.created, head.model, choices, usage)
        chat.kv_transfer_params = lent
        if self._job.token_ids:
            chat.prompt_token_ids = self._job.prompts[0]
        return shapes.encode(chat)

    def _choice(self, index: int, deltas: list[Delta]) -> shapes.ChatChoice:
        last = deltas[-1]
        choice = shapes.ChatChoice(
            index,
            shapes.Said(role="assistant", content="".join(d.text for d in deltas)),
            self._logprobs(deltas),
            last.finish,
            last.stop_reason,
        )
        if self._job.token_ids:
            choice.token_ids = [delta.token for delta in deltas]
        return choice

    def _logprobs(self, deltas: list[Delta]) -> shapes.ChatLogprobs | None:
        top = self._job.logprobs
        if top is None:
            return None
        content = []
        for delta in deltas:
            rivals = [_rival(*r) for r in tokens.candidates(delta.state, max(top, 1))]
            text = tokens.TEXTS[delta.token]
            said = list(tokens.PIECES[delta.token])
            content.append(shapes.TokenLogprob(text, rivals[0].logprob, said, rivals[:top]))
        return shapes.ChatLogprobs(content)

    def _chat_event(
        self, choices: list[shapes.ChatPiece], usage: shapes.Usage | msgspec.UnsetType = UNSET
    ) -> shapes.ChatEvent:
        head = self.head
        return shapes.ChatEvent(head.id, head.created, head.model, choices, usage)


def _rival(token: int, logprob: float) -> shapes.TopLogprob:
    return shapes.TopLogprob(tokens.TEXTS[token], logprob, list(tokens.PIECES[token]))


def _event(body: msgspec.Struct) -> bytes:
    return b"data: " + shapes.encode(body) + b"\n\n"
