"""Which requests go through two stages, and what each stage is sent. Pure.

Prefill reads the prompt and makes one token that nobody sees; decode gets the client's request as
it came, byte for byte, with a ticket's parameters put in. A request is split only where the two
are sure to see the same tokens and one ticket is enough: one prompt, one answer, a completion or a
chat. Everything else decode serves alone, which gives the very answer that an aggregated worker
gives: a list of prompts would need a ticket for each and its streams merged again, event by event;
what reads the prompt's logits (echo, prompt logprobs) needs a whole prefill where the answer is.
Several answers to one prompt (n > 1) each fetch the blocks for themselves, and the first to do so
frees them: one that is admitted later, when memory is short, would read somebody else's.

A chat becomes tokens through a template, which may print the time: then the two stages would see
different prompts. So prefill is asked for its tokens, and a ticket carries them to decode.
"""

import hashlib
from collections.abc import Callable

import msgspec

from workers.frontend.intake import Ask, Fields

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NO_REMOTE = (
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)
"""What makes prefill keep the blocks and say where they are."""

_OFF = frozenset({b"null", b"false"})
_ONE = frozenset({b"null", b"1"})
_WHOLE: dict[str, tuple[frozenset[bytes], str]] = {
    "echo": (_OFF, "echo"),
    "prompt_logprobs": (frozenset({b"null"}), "prompt logprobs"),
    "use_beam_search": (_OFF, "beam search"),
    "best_of": (_ONE, "best_of"),
    "n": (_ONE, "several answers"),
    # How much is cut off depends on max_tokens, which differs between the stages.
    "truncate_prompt_tokens": (frozenset({b"null"}), "prompt truncation"),
    "prompt_embeds": (frozenset({b"null"}), "prompt embeddings"),
    # Decode renders no text where it is given prefill's tokens.
    "return_prompt_text": (_OFF, "prompt text"),
}
"""Fields that keep a request whole, the values that don't, and what it is called."""
_UNWANTED = frozenset(
    {
        "n", "min_tokens", "max_tokens", "max_completion_tokens", "stream", "stream_options",
        "logprobs", "top_logprobs", "return_token_ids",
    }
)  # fmt: skip
"""What prefill isn't told: it shapes an answer that nobody reads."""
_ONE_TOKEN = {"stream": msgspec.Raw(b"false"), "max_tokens": msgspec.Raw(b"1")}
_encode = msgspec.json.Encoder().encode


def whole(ask: Ask, fields: Fields | None) -> str:
    """Say why a request can't be split; empty if it can.

    `fields`: of its body; None when that isn't JSON as we read it, though the engine may.
    """
    prompt_of = _PROMPTS.get(ask.path)
    if prompt_of is None or ask.method != "POST":
        return "another API"
    if fields is None:
        return "unread body"
    for name, (harmless, reason) in _WHOLE.items():
        raw = fields.get(name)
        if raw is not None and bytes(raw) not in harmless:
            return reason
    return prompt_of(fields)


def digest(ask: Ask) -> bytes:
    """Return what a ticket is bound to: the whole request, hence its prompt too."""
    return hashlib.blake2b(ask.body, digest_size=16, person=b"dynorch").digest()


def prefill_ask(ask: Ask, fields: Fields) -> Ask:
    """Return the request that prefill gets: the same prompt, one token, blocks kept."""
    kept = {name: raw for name, raw in fields.items() if name not in _UNWANTED}
    kept |= _ONE_TOKEN
    if ask.path == CHAT:
        kept["max_completion_tokens"] = _ONE_TOKEN["max_tokens"]
        kept["return_token_ids"] = msgspec.Raw(b"true")
    kept["kv_transfer_params"] = msgspec.Raw(NO_REMOTE)
    return _with_body(ask, _encode(kept))


def decode_ask(ask: Ask, params: bytes) -> Ask:
    """Return the request that decode gets: the client's, with a ticket's parameters."""
    end = ask.body.rindex(b"}")
    return _with_body(ask, ask.body[:end] + b',"kv_transfer_params":' + params + b"}")


def _with_body(ask: Ask, body: bytes) -> Ask:
    headers = [line for line in ask.headers if line[0] != b"content-length"]
    headers.append((b"content-length", b"%d" % len(body)))
    return Ask(ask.method, ask.path, ask.query, headers, body)


def _prompt(fields: Fields) -> str:
    """Examine a completion's prompt: text, token ids, or a list of either that has one item."""
    raw = bytes(fields.get("prompt", b""))
    if raw.startswith(b'"'):
        return ""
    if not raw.startswith(b"["):
        return "no prompt"
    inside = raw[1:64].lstrip()
    if inside[:1].isdigit():
        return ""
    items = msgspec.json.decode(raw, type=list[msgspec.Raw])
    if len(items) == 1 and bytes(items[0])[:1] in (b'"', b"["):
        return ""
    return "several prompts" if items else "no prompt"


def _messages(fields: Fields) -> str:
    """Examine a chat. Media that is fetched twice need not be the same twice."""
    raw = bytes(fields.get("messages", b""))
    if not raw.startswith(b"["):
        return "no messages"
    return "media" if b'_url"' in raw else ""


_PROMPTS: dict[str, Callable[[Fields], str]] = {CHAT: _messages, COMPLETIONS: _prompt}
