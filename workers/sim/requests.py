"""What clients may ask, understood and bounded once: a request becomes a `Job` or a RequestError.

Fields that only shape a real model's randomness (temperature, seed, penalties, tools, ...) are
accepted and change nothing. What can't be simulated truthfully is refused.
"""

import re
from typing import Any, TypeVar

import msgspec

from workers.sim import tokens
from workers.sim.options import Options
from workers.sim.sequence import Limits
from workers.sim.shapes import RequestError
from workers.sim.ticket import Wish, wish_of

CHOICES_MAX = 128
SEQUENCES_MAX = 1024
"""Prompts times choices of one request."""
TOP_LOGPROBS_MAX = 20
STOPS_MAX = 64
COMPLETION_TOKENS = 16
"""What /v1/completions generates when it isn't told, as OpenAI and vLLM do."""

_AT = re.compile(r" - at `\$\.?([^`]*)`")
B = TypeVar("B", bound=msgspec.Struct)


class StreamOptions(msgspec.Struct):
    """OpenAI's `include_usage`; vLLM's usage on every event."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class Ask(msgspec.Struct, kw_only=True):
    """What both kinds of completion have in common."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    kv_transfer_params: dict[str, Any] | None = None


class AskCompletion(Ask, kw_only=True):
    """Body of /v1/completions. `prompt`: text, token ids, or a list of either."""

    prompt: Any = None
    logprobs: int | None = None
    echo: bool | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str = ""


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str
    content: str | list[Part] | None = None


class AskChat(Ask, kw_only=True):
    """Body of /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class AskTokenize(msgspec.Struct, kw_only=True):
    """Body of /tokenize: a prompt or a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = None


class AskDetokenize(msgspec.Struct, kw_only=True):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[int]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A request, understood. `logprobs`: how many rivals to list per token; None is no list."""

    prompts: list[list[int]]
    choices: int
    limits: list[Limits]
    stream: bool
    usage_at_end: bool
    usage_always: bool
    logprobs: int | None
    token_ids: bool
    echo: bool
    wish: Wish | None


def read(body: bytes, kind: type[B]) -> B:
    """Decode a JSON body; a RequestError names the field that is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        at = _AT.search(str(error))
        raise RequestError(str(error), param=at[1] if at else None) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body isn't JSON: {error}") from error


def completion_job(ask: AskCompletion, options: Options) -> Job:
    """Understand /v1/completions."""
    if ask.logprobs is not None and not 0 <= ask.logprobs <= TOP_LOGPROBS_MAX:
        raise RequestError(f"logprobs must be 0 to {TOP_LOGPROBS_MAX}", param="logprobs")
    if ask.echo and ask.logprobs is not None:
        raise RequestError("echo with logprobs isn't simulated", param="echo")
    prompts = _prompts(ask.prompt)
    tokens_max = COMPLETION_TOKENS if ask.max_tokens is None else ask.max_tokens
    return _job(ask, options, prompts, tokens_max, ask.logprobs, echo=bool(ask.echo))


def chat_job(ask: AskChat, options: Options) -> Job:
    """Understand /v1/chat/completions."""
    if ask.top_logprobs and not ask.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    top = ask.top_logprobs or 0
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise RequestError(f"top_logprobs must be 0 to {TOP_LOGPROBS_MAX}", param="top_logprobs")
    prompt = _forwarded(ask) or chat_prompt(ask, ask.messages, options)
    limit = ask.max_tokens if ask.max_completion_tokens is None else ask.max_completion_tokens
    return _job(ask, options, [prompt], limit, top if ask.logprobs else None, echo=False)


def _forwarded(ask: AskChat) -> list[int] | None:
    """Take out the tokens that prefill has read; as in vLLM they are the prompt, if it is text."""
    param = "kv_transfer_params.prompt_token_ids"
    ids = (ask.kv_transfer_params or {}).pop("prompt_token_ids", None)
    if ids is None or any(not _is_plain(message) for message in ask.messages):
        return None
    if not isinstance(ids, list) or not ids or any(not _is_token(i) or i < 0 for i in ids):
        raise RequestError(
            "`kv_transfer_params['prompt_token_ids']` must be a non-empty list of non-negative"
            " integers.",
            param=param,
        )
    check_ids(ids, param)
    return ids


def _is_plain(message: Message) -> bool:
    parts = message.content if isinstance(message.content, list) else []
    return all(part.type == "text" for part in parts)


def chat_prompt(ask: AskChat | AskTokenize, messages: list[Message], options: Options) -> list[int]:
    """Apply the chat template."""
    if not messages:
        raise RequestError("messages must not be empty", param="messages")
    said = []
    for number, message in enumerate(messages):
        if message.role not in tokens.ROLES:
            raise RequestError(f"unknown role {message.role!r}", param=f"messages[{number}].role")
        said.append((message.role, _text(message, number)))
    return tokens.render_chat(
        said,
        open_end=ask.continue_final_message,
        generate=ask.add_generation_prompt,
        today=options.today,
    )


def _text(message: Message, number: int) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    for part in message.content:
        if part.type != "text":
            raise RequestError(
                f"the simulated model reads text only, not {part.type!r}",
                param=f"messages[{number}].content",
            )
    return "".join(part.text for part in message.content)


def _prompts(prompt: Any) -> list[list[int]]:
    """Read the four shapes that a prompt may have."""
    one = isinstance(prompt, str) or (
        isinstance(prompt, list) and prompt and all(_is_token(item) for item in prompt)
    )
    if one:
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise RequestError("prompt must be provided and non-empty", param="prompt")
    return [_prompt(item) for item in prompt]


def _prompt(item: Any) -> list[int]:
    if isinstance(item, str) and item:
        return tokens.encode(item)
    if isinstance(item, list) and item and all(_is_token(token) for token in item):
        check_ids(item, "prompt")
        return item
    raise RequestError(
        "prompt must be non-empty text or token ids, or a list of either", param="prompt"
    )


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def check_ids(ids: list[int], param: str) -> None:
    """Refuse ids outside the vocabulary."""
    for token in ids:
        if not 0 <= token < tokens.VOCABULARY:
            raise RequestError(f"Token id {token} is out of vocabulary", param=param)


def _job(
    ask: Ask,
    options: Options,
    prompts: list[list[int]],
    tokens_max: int | None,
    logprobs: int | None,
    *,
    echo: bool,
) -> Job:
    choices = 1 if ask.n is None else ask.n
    if not 1 <= choices <= CHOICES_MAX:
        raise RequestError(f"n must be 1 to {CHOICES_MAX}", param="n")
    if choices * len(prompts) > SEQUENCES_MAX:
        raise RequestError(f"at most {SEQUENCES_MAX} answers a request", param="prompt")
    if ask.stream_options is not None and not ask.stream:
        raise RequestError(
            "Stream options can only be defined when `stream=True`.", param="stream_options"
        )
    stream_options = ask.stream_options or StreamOptions()
    return Job(
        prompts=prompts,
        choices=choices,
        limits=[_limits(ask, options, len(prompt), tokens_max) for prompt in prompts],
        stream=bool(ask.stream),
        usage_at_end=bool(stream_options.include_usage),
        usage_always=bool(stream_options.include_usage and stream_options.continuous_usage_stats),
        logprobs=logprobs,
        token_ids=bool(ask.return_token_ids),
        echo=echo,
        wish=wish_of(ask.kv_transfer_params),
    )


def _limits(ask: Ask, options: Options, prompt_tokens: int, tokens_max: int | None) -> Limits:
    room = options.max_model_len - prompt_tokens
    if tokens_max is not None and tokens_max < 1:
        raise RequestError(f"max_tokens must be at least 1, got {tokens_max}.", param="max_tokens")
    if room < (tokens_max or 1):
        raise RequestError(
            f"This model's maximum context length is {options.max_model_len} tokens. However, you"
            f" requested {tokens_max or 1} output tokens and your prompt contains"
            f" {prompt_tokens} input tokens. Please reduce the length of the input or the number"
            " of requested output tokens.",
            param="input_tokens",
        )
    stop = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop or ())
    if len(stop) > STOPS_MAX or not all(stop):
        raise RequestError(f"stop must be at most {STOPS_MAX} non-empty strings", param="stop")
    # Only an answer of no stated length ends by itself: tests count on the lengths they ask for.
    bounded = tokens_max is not None
    return Limits(
        max_tokens=tokens_max if tokens_max is not None else room,
        min_tokens=ask.min_tokens or 0,
        ends_itself=not bounded if ask.ignore_eos is None else not ask.ignore_eos,
        stop=stop,
        stop_token_ids=frozenset(ask.stop_token_ids or ()),
        keep_stop=ask.include_stop_str_in_output,
    )
