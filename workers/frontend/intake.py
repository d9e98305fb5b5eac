"""What may come in: paths, headers and bodies, before anybody is asked to serve them.

Workers trust the frontend, so what only we may set is taken out of what clients send. The most
dangerous are KV-transfer parameters: an engine believes them, and a forged one kills it or makes
it attend to somebody else's cache. The check must see what the engine will see. The engine reads
JSON with Python's parser; we read it with a faster and stricter one, and whatever that refuses
(NaN, UTF-16, lone surrogates) is read again with Python's, so no body passes unexamined.
"""

import json
import re
from typing import Any, NamedTuple

import msgspec

from orchestrator.wire.plane import Headers
from workers.frontend.problems import Problem, bad_request

OURS = ("kv_transfer_params", "ec_transfer_params")
_NEEDLE = b"transfer_params"

HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
        b"proxy-authorization", b"te", b"trailer", b"trailers", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_NOT_FORWARDED = HOP_BY_HOP | {
    b"content-length", b"expect", b"x-request-id", b"x-data-parallel-rank", b"x-dynorch-canary",
}  # fmt: skip
_PLAIN_CONNECTION = frozenset({b"", b"keep-alive", b"close"})
_NOT_RETURNED = HOP_BY_HOP | {
    b"x-request-id", b"date", b"server", b"x-dynorch-worker", b"x-dynorch-engine",
}  # fmt: skip

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

Maybe = msgspec.Raw | msgspec.UnsetType


class _Peek(msgspec.Struct):
    """The few top-level keys that we look at; all others are skipped, not decoded."""

    model: str | msgspec.UnsetType | None = msgspec.UNSET
    kv_transfer_params: Maybe = msgspec.UNSET
    ec_transfer_params: Maybe = msgspec.UNSET
    sampling_params: Maybe = msgspec.UNSET
    vllm_xargs: Maybe = msgspec.UNSET


_peek = msgspec.json.Decoder(_Peek).decode


class Heading(NamedTuple):
    """What a request's headers say. `forwarded` are those that a worker may get."""

    forwarded: Headers
    content_type: bytes
    length: int
    websocket: bool


class Ask(msgspec.Struct, frozen=True):
    """A request as a worker gets it."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


class Sifted(msgspec.Struct, frozen=True):
    """A body that may go to a worker, and the model it names, if it names one."""

    body: bytes
    model: str | None = None
    stripped: bool = False


def denied(path: str) -> bool:
    """Whether `path` steers the engine itself, which only the operator may do."""
    path = path.rstrip("/")
    return path in _DENIED or any(path == p or path.startswith(p + "/") for p in _DENIED_BELOW)


def survey(headers: Headers) -> Heading:
    """Look at a request's headers, once. Names are lower case, as the parser gives them."""
    forwarded: Headers = []
    content_type, length, named = b"", 0, b""
    websocket = False
    for line in headers:
        name, value = line
        if name not in _NOT_FORWARDED:
            forwarded.append(line)
            if name == b"content-type":
                content_type = value
        elif name == b"content-length":
            length = int(value)
        elif name == b"connection":
            named = value.lower()
        elif name == b"upgrade":
            websocket = b"websocket" in value.lower()
    if named not in _PLAIN_CONNECTION:
        dropped = {token.strip() for token in named.split(b",")}
        forwarded = [line for line in forwarded if line[0] not in dropped]
    return Heading(forwarded, content_type, length, websocket)


def returned(headers: Headers, extra: Headers) -> Headers:
    """Return what a client gets: all but what concerns the worker's side, plus ours."""
    return [line for line in headers if line[0].lower() not in _NOT_RETURNED] + extra


def sift(body: bytes, content_type: bytes = b"") -> Sifted | Problem:
    """Find the model, take out what only we may set; a Problem when it claims to be JSON and isn't.

    Bodies are examined whatever their content type, because not every route of the engine looks
    at it. The body is passed on byte for byte unless something had to be taken out.
    """
    if not body:
        return Sifted(body)
    if body.startswith(b"--") and content_type.startswith(b"multipart/"):
        return Sifted(body, _form_model(body))
    try:
        peek = _peek(body)
    except (msgspec.DecodeError, RecursionError):
        return _sift_slowly(body, content_type)
    if _suspicious(peek):
        return _sift_slowly(body, content_type)
    return Sifted(body, peek.model if isinstance(peek.model, str) else None)


def _suspicious(peek: _Peek) -> bool:
    if peek.kv_transfer_params is not msgspec.UNSET or peek.ec_transfer_params is not msgspec.UNSET:
        return True
    return any(
        isinstance(raw, msgspec.Raw) and (_NEEDLE in (text := bytes(raw)) or b"\\u" in text)
        for raw in (peek.sampling_params, peek.vllm_xargs)
    )


def _sift_slowly(body: bytes, content_type: bytes) -> Sifted | Problem:
    """Do the same with the parser that the engine uses."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        media = content_type.partition(b";")[0].strip().lower()
        if media in {b"", b"application/json"} or media.endswith(b"+json"):
            return bad_request(f"The request body is not valid JSON: {error}.")
        return Sifted(body)
    if not isinstance(data, dict):
        return Sifted(body)
    stripped = _strip(data)
    model = data.get("model")
    return Sifted(
        json.dumps(data).encode() if stripped else body,
        model if isinstance(model, str) else None,
        stripped,
    )


def _strip(data: dict[str, Any]) -> bool:
    """Remove our keys wherever an engine would look for them; True if there were any."""
    sampling = data.get("sampling_params")
    places = [data, data.get("vllm_xargs"), sampling]
    if isinstance(sampling, dict):
        places.append(sampling.get("extra_args"))
    found = False
    for place in places:
        if isinstance(place, dict):
            for key in OURS:
                found |= place.pop(key, _ABSENT) is not _ABSENT
    return found


_ABSENT = object()
_FORM_MODEL = re.compile(
    rb'content-disposition:[^\r\n]*\bname="?model"?[^\r\n]*\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n",
    re.IGNORECASE,
)


def _form_model(body: bytes) -> str | None:
    """Return the `model` field of a multipart form (audio transcription sends one)."""
    match = _FORM_MODEL.search(body)
    return match[1].decode(errors="replace") if match else None
