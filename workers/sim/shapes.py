"""The JSON that leaves the simulator: OpenAI's shapes, with vLLM's extensions where asked for.

A field that is `UNSET` isn't written at all; one that is None is written as null, as vLLM does.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

OWNER = "dynorch-sim"
"""Who owns the models: how a client can tell that its answers are simulated."""

Lent = dict[str, Any] | None | UnsetType
"""`kv_transfer_params` of an answer; null where nothing is kept for another engine."""


class PromptDetails(msgspec.Struct):
    """Of the prompt's tokens, those that were found in a cache."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens in, out, and both."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of /v1/completions, as parallel lists."""

    text_offset: list[int] = []
    token_logprobs: list[float] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float]] = []


class CompletionChoice(msgspec.Struct):
    """One answer, or one piece of it, of /v1/completions."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct):
    """Body of /v1/completions, and one event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET
    kv_transfer_params: Lent = UNSET
    object: Literal["text_completion"] = "text_completion"


class TopLogprob(msgspec.Struct):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """A token that was, and its rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of /v1/chat/completions."""

    content: list[TokenLogprob]


class Said(msgspec.Struct):
    """A whole message, or in a stream the part that is new."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One whole answer of /v1/chat/completions."""

    index: int
    message: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatPiece(msgspec.Struct):
    """One piece of an answer."""

    index: int
    delta: Said
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Chat(msgspec.Struct):
    """Body of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    kv_transfer_params: Lent = UNSET
    object: Literal["chat.completion"] = "chat.completion"


class ChatEvent(msgspec.Struct):
    """One event of a chat's stream."""

    id: str
    created: int
    model: str
    choices: list[ChatPiece]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class Model(msgspec.Struct):
    """One line of /v1/models."""

    id: str
    created: int
    max_model_len: int
    root: str
    parent: None = None
    object: Literal["model"] = "model"
    owned_by: str = OWNER


class Models(msgspec.Struct):
    """Body of /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class Tokenized(msgspec.Struct):
    """Body of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    """Body of /detokenize."""

    prompt: str


class Problem(msgspec.Struct):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ProblemBody(msgspec.Struct):
    """Body of every error."""

    error: Problem


class RequestError(Exception):
    """A request that is answered with an error; raised anywhere while it is being understood."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


encode = msgspec.json.Encoder().encode

_KINDS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


def problem(message: str, status: int, param: str | None = None) -> bytes:
    """Encode the body of an error, with vLLM's names for the kinds."""
    kind = _KINDS.get(status, "Error")
    return encode(ProblemBody(Problem(message, kind, param, status)))
