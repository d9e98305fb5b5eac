"""What may come in: paths, headers and bodies, before anybody is asked to serve them.

Workers trust the frontend, so what only we may set is taken out of what clients send. The most
dangerous are KV-transfer parameters: an engine believes them, and a forged one kills it or makes
it attend to somebody else's cache. The check must see what the engine will see. The engine reads
JSON with Python's parser; we read it with a faster and stricter one, and whatever that refuses
(NaN, UTF-16, lone surrogates) is read again with Python's, so no body passes unexamined. What looks
like a key of ours, in other case or with other separators, is taken out too: who knows what stands
behind an upstream. A form or a compressed body can't be repaired, so it is refused.
"""

import json
import re
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from orchestrator.wire.plane import Headers
from workers.frontend.problems import Problem, bad_request

OURS = frozenset({"kvtransferparams", "ectransferparams"})
"""As `_plain` spells them."""
_CARRIERS = frozenset(
    {
        "sampling_params", "vllm_xargs", "extra_args", "extra_body", "chat_request",
        "generate_response", "generate_responses",
    }
)  # fmt: skip
"""Objects that an engine makes arguments of; elsewhere our words are only words."""
_NEEDLE = re.compile(rb"transfer[_-]?params", re.IGNORECASE)

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
        b"proxy-authorization", b"te", b"trailer", b"trailers", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NOT_FORWARDED = HOP_BY_HOP | {
    b"content-length", b"expect", b"x-request-id", b"x-data-parallel-rank",
}  # fmt: skip
_OURS_BELOW = b"x-dynorch-"
"""Headers that begin like this are only for us to set, in either direction."""
_PLAIN_CONNECTION = frozenset({b"", b"keep-alive", b"close"})
_NOT_RETURNED = HOP_BY_HOP | {b"x-request-id", b"date", b"server"}

_DENIED = frozenset(
    {
        "/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory", "/collective_rpc",
        "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/server_info",
        "/kv_event_sources", "/pause", "/resume", "/is_paused", "/abort_requests",
        "/inference/v1/abort_requests", "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update",
        "/update_weights", "/finish_weight_update", "/update_weight_version", "/weight_info",
        "/weight_checker", "/get_world_size", "/start_profile", "/stop_profile",
        "/scale_elastic_ep", "/is_scaling_elastic_ep",
        "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
    }
)  # fmt: skip
_DENIED_BELOW = ("/adapters", "/fault_tolerance")

Fields = dict[str, msgspec.Raw]
"""The top-level keys of a body, each with its value as it was written."""

_read = msgspec.json.Decoder(Fields).decode
_text = msgspec.json.Decoder(str | None).decode
_ORDINARY = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "temperature",
        "max_completion_tokens", "top_p", "top_k", "n", "stop", "seed", "user", "tools",
        "tool_choice", "response_format", "logprobs", "top_logprobs", "presence_penalty",
        "frequency_penalty", "input", "ignore_eos", "min_tokens",
    }
)  # fmt: skip
"""Keys that need no second look: most requests have no other."""


class Heading(NamedTuple):
    """What a request's headers say. `forwarded` are those that a worker may get."""

    forwarded: Headers
    content_type: bytes
    length: int
    websocket: bool
    coding: bytes = b""


class Ask(msgspec.Struct, frozen=True):
    """A request as a worker gets it."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


class Sifted(msgspec.Struct, frozen=True):
    """A body that may go to a worker, and the model it names, if it names one.

    `fields`: what is in it; None if it isn't JSON that we read without help.
    """

    body: bytes
    model: str | None = None
    stripped: bool = False
    fields: Fields | None = None


def denied(path: str) -> bool:
    """Whether `path` steers the engine itself, which only the operator may do."""
    path = path.rstrip("/")
    return path in _DENIED or any(path == p or path.startswith(p + "/") for p in _DENIED_BELOW)


def survey(headers: Headers) -> Heading:
    """Look at a request's headers, once. Names are lower case, as the parser gives them."""
    forwarded: Headers = []
    content_type, length, named, coding = b"", 0, b"", b""
    websocket = False
    for line in headers:
        name, value = line
        if _is_forwarded(name):
            forwarded.append(line)
            if name == b"content-type":
                content_type = value.lower()
            elif name == b"content-encoding":
                coding = value.strip().lower()
        elif name == b"content-length":
            length = int(value)
        elif name == b"connection":
            named = value.lower()
        elif name == b"upgrade":
            websocket = b"websocket" in value.lower()
    if named not in _PLAIN_CONNECTION:
        dropped = {token.strip() for token in named.split(b",")}
        forwarded = [line for line in forwarded if line[0] not in dropped]
    return Heading(forwarded, content_type, length, websocket, coding)


@lru_cache(1024)
def _is_forwarded(name: bytes) -> bool:
    """Whether a worker may get a header. Some servers read `_` as `-`; so do we."""
    alike = name.replace(b"_", b"-")
    return alike not in _NOT_FORWARDED and not alike.startswith(_OURS_BELOW)


def returned(headers: Headers, extra: Headers) -> Headers:
    """Return what a client gets: all but what concerns the worker's side, plus ours."""
    return [line for line in headers if _is_returned(line[0])] + extra


@lru_cache(1024)
def _is_returned(name: bytes) -> bool:
    name = name.lower()
    return name not in _NOT_RETURNED and not name.startswith(_OURS_BELOW)


def sift(body: bytes, content_type: bytes = b"") -> Sifted | Problem:
    """Find the model, take out what only we may set; a Problem where that can't be done.

    Bodies are examined whatever their content type, because not every route of the engine looks
    at it. The body is passed on byte for byte unless something had to be taken out.
    """
    if not body:
        return Sifted(body)
    if content_type.startswith(_FORMS):
        if _form_has_ours(body, content_type):
            return bad_request("A form can't have a field for KV transfer: leave it out.")
        if body.startswith(b"--"):
            return Sifted(body, _form_model(body))
    try:
        fields = _read(body)
        if _suspicious(fields):
            return _sift_slowly(body, content_type)
        model = fields.get("model")
        return Sifted(body, None if model is None else _name(bytes(model)), fields=fields)
    except (msgspec.DecodeError, RecursionError):
        return _sift_slowly(body, content_type)


def _name(raw: bytes) -> str | None:
    return _text(raw) if raw.startswith(b'"') else None


def _suspicious(fields: Fields) -> bool:
    """Whether any key may be one of ours, or hold one; an escape may spell anything."""
    for key in fields.keys() - _ORDINARY:
        if key in _CARRIERS:
            raw = bytes(fields[key])
            if _NEEDLE.search(raw) or b"\\u" in raw:
                return True
        elif _plain(key) in OURS:
            return True
    return False


def _plain(key: str) -> str:
    """Spell a key without case and separators."""
    return key.lower().replace("_", "").replace("-", "")


def _sift_slowly(body: bytes, content_type: bytes) -> Sifted | Problem:
    """Do the same with the parser that the engine uses."""
    try:
        data = json.loads(body)
        stripped = _strip(data)
    except (ValueError, RecursionError) as error:
        media = content_type.partition(b";")[0].strip()
        if media in {b"", b"application/json"} or media.endswith(b"+json"):
            return bad_request(f"The request body is not valid JSON: {error}.")
        return Sifted(body)
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, str):
        model = None
    if not stripped:
        return Sifted(body, model)
    body = json.dumps(data).encode()
    return Sifted(body, model, stripped=True, fields=_fields(body))


def _fields(body: bytes) -> Fields | None:
    try:
        return _read(body)
    except msgspec.DecodeError:
        return None


def _strip(data: Any) -> int:
    """Remove our keys wherever an engine would look for them; return how many there were."""
    if isinstance(data, list):
        return sum(_strip(one) for one in data)
    if not isinstance(data, dict):
        return 0
    ours = [key for key in data if _plain(key) in OURS]
    for key in ours:
        del data[key]
    return len(ours) + sum(_strip(data[key]) for key in _CARRIERS & data.keys())


_FORMS = (b"multipart/", b"application/x-www-form-urlencoded")
_FORM_LINE = re.compile(rb"content-disposition:[^\r\n]*", re.IGNORECASE)
_FORM_MODEL = re.compile(
    rb'content-disposition:[^\r\n]*\bname="?model"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n",
    re.IGNORECASE,
)


def _form_has_ours(body: bytes, content_type: bytes) -> bool:
    """Whether a form has a field of ours. Its files are not searched, its fields' names are."""
    if content_type.startswith(b"multipart/"):
        places = [line[0] for line in _FORM_LINE.finditer(body)]
    else:
        places = [body]
    return any(_NEEDLE.search(unquote_to_bytes(place)) for place in places)


def _form_model(body: bytes) -> str | None:
    """Return the `model` field of a multipart form (audio transcription sends one)."""
    match = _FORM_MODEL.search(body)
    return match[1].decode(errors="replace") if match else None
