"""Everything that the frontend itself answers with an error, in the one shape clients know.

OpenAI's clients read `{"error": {"message", "type", "param", "code"}}`; vLLM answers in the same
shape with the HTTP status as `code`, and so do we. After the first byte of a stream there is no
status left to set: then the same error becomes an event, in the dialect of the API in use.
"""

import math
from typing import Any

import msgspec

Headers = list[tuple[bytes, bytes]]


class Problem(msgspec.Struct, frozen=True):
    """One error answer. `message` is a sentence that says what happened and what to do."""

    status: int
    type: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


def bad_request(message: str, param: str | None = None) -> Problem:
    """Say that the request itself is wrong; sending it again can't help."""
    return Problem(400, "BadRequestError", message, param)


def forbidden(message: str) -> Problem:
    """Say that the path exists on the engine, and is not for clients."""
    return Problem(403, "PermissionDeniedError", message)


def not_found(message: str, param: str | None = None) -> Problem:
    """Say that there is no such path or model."""
    return Problem(404, "NotFoundError", message, param)


def wrong_method(method: str, path: str) -> Problem:
    """Say that one of our own paths has no meaning for this method."""
    return Problem(405, "BadRequestError", f"{path} answers GET and HEAD, not {method}.")


def too_large(body_max: int) -> Problem:
    """Say that the body is over the bound; the rest of it is not kept."""
    text = f"The request body is larger than {body_max} bytes ([frontend] body-max)."
    return Problem(413, "RequestTooLargeError", text)


def too_slow(pause_max_s: float) -> Problem:
    """Say that the body stopped coming."""
    return Problem(408, "TimeoutError", f"No byte of the request body came for {pause_max_s:g} s.")


def compressed(coding: str) -> Problem:
    """Say that the body can't be examined as it is, so nobody gets it."""
    text = f"A request body with content-encoding `{coding}` is not taken: send it uncompressed."
    return Problem(415, "UnsupportedMediaTypeError", text)


def too_many(requests_max: int) -> Problem:
    """Say that as many requests are open as may be."""
    text = f"{requests_max} requests are open, as many as may be ([frontend] requests-max)."
    return Problem(429, "RateLimitError", text, retry_after_s=1)


def internal(message: str) -> Problem:
    """Say that the worker's application, or the frontend, failed on this request."""
    return Problem(500, "InternalServerError", message)


def unavailable(message: str, retry_after_s: float = 1) -> Problem:
    """Say that nobody can serve it now: the message why, the header when to try again."""
    return Problem(503, "service_unavailable", message, retry_after_s=retry_after_s)


def timed_out(timeout_s: float) -> Problem:
    """Say that the request took longer than the operator allows."""
    text = f"The request took longer than {timeout_s:g} s ([frontend] request-timeout)."
    return Problem(504, "TimeoutError", text)


def content(problem: Problem) -> dict[str, Any]:
    """Return the error as clients read it."""
    return {
        "message": problem.message,
        "type": problem.type,
        "param": problem.param,
        "code": problem.status,
    }


def body(problem: Problem) -> bytes:
    """Return the whole answer's body."""
    return msgspec.json.encode({"error": content(problem)})


def headers(problem: Problem, request_id: bytes = b"") -> Headers:
    """Return what goes with `body`, except its length and the date."""
    lines: Headers = [(b"content-type", b"application/json")]
    if problem.retry_after_s is not None:
        lines.append((b"retry-after", b"%d" % max(1, math.ceil(problem.retry_after_s))))
    if request_id:
        lines.append((b"x-request-id", request_id))
    return lines


def event(problem: Problem, path: str) -> bytes:
    """Return the error as the last event of a stream that has begun, and that stream's end.

    A client that reads events finds it where the API of `path` puts errors; none takes a stream
    that ends with this for a complete one.
    """
    if path.startswith("/v1/messages"):
        data = msgspec.json.encode({"type": "error", "error": content(problem)})
        return b"event: error\ndata: " + data + b"\n\n"
    if path.startswith("/v1/responses"):
        error: dict[str, Any] = {
            "type": "error",
            "code": problem.type,
            "message": problem.message,
            "param": problem.param,
        }
        return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"
    return b"data: " + body(problem) + b"\n\ndata: [DONE]\n\n"
