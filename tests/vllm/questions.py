"""What both are asked, vLLM's own server and ours, and what may differ in the answers.

Greedy, and bounded so that even a model of noise comes to an end: enumerations where a schema
has strings, and no free whitespace (see `FLAGS` and `TERSE`).
"""

import json
import re

from tests.vllm import tiny_model

MODEL = "tiny"
FLAGS = {
    "dtype": "float32",
    "enforce-eager": True,
    "max-model-len": 512,
    "max-num-seqs": 8,
    "kv-cache-memory-bytes": 64 << 20,
    "enable-auto-tool-choice": True,
    "tool-call-parser": "hermes",
    "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
"""`vllm serve` flags of the engine under test; the same for both."""

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "strict": True, "parameters": CITY},
}
SAY = [{"role": "user", "content": "What is the weather in Paris?"}]
USAGE = {"stream_options": {"include_usage": True}}


def completion(prompt, **more) -> tuple[str, dict]:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 24, **more}
    return "/v1/completions", body


def chat(**more) -> tuple[str, dict]:
    body = {"model": MODEL, "messages": SAY, "temperature": 0, "max_tokens": 24, **more}
    return "/v1/chat/completions", body


TERSE = {"logit_bias": {str(token): -100 for token in tiny_model.whitespace()}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}

QUESTIONS: dict[str, tuple[str, dict]] = {
    "completion": completion("The quick brown fox"),
    "completion-stream": completion("The quick brown fox", stream=True, **USAGE),
    "completion-logprobs": completion("one two three", logprobs=3, echo=True),
    "completion-batch": completion(["A supervisor", "watches its workers", "and explains"]),
    "completion-choices": completion("one two three", n=2),
    "completion-tokens": completion([5, 80, 90], return_token_ids=True),
    "chat": chat(),
    "chat-stream": chat(stream=True, **USAGE),
    "chat-logprobs": chat(logprobs=True, top_logprobs=2, max_tokens=4),
    "chat-schema": chat(response_format=SCHEMA),
    "chat-choice": chat(structured_outputs={"choice": ["sunny", "rainy"]}),
    "tool-named": chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=64, **TERSE),
    "tool-required": chat(tools=[WEATHER], tool_choice="required", max_tokens=64, **TERSE),
    "tokenize": ("/tokenize", {"model": MODEL, "prompt": "helpful assistant"}),
    "tokenize-chat": ("/tokenize", {"model": MODEL, "messages": SAY}),
    "detokenize": ("/detokenize", {"model": MODEL, "tokens": [72, 101, 300]}),
    "responses": (
        "/v1/responses",
        {"model": MODEL, "input": "hello", "temperature": 0, "max_output_tokens": 16},
    ),
    "messages": ("/v1/messages", {"model": MODEL, "messages": SAY, "max_tokens": 8, "top_k": 1}),
    "no-such-model": completion("a", model="nobody"),
    "too-long": completion("a", max_tokens=4096),
    "not-valid": completion("a", temperature="hot"),
}

_VARIES = re.compile(
    rb'"(id|item_id|request_id|created|created_at|completed_at)": ?("[^"]*"|[0-9.e+]+|null)'
)


_FINGERPRINT = re.compile(rb'"system_fingerprint": ?"[^"]*"')


def same_but_for_its_setup(body: bytes) -> bytes:
    """The comparable answer without what tells how the engine is set up: its parallelism."""
    return _FINGERPRINT.sub(b"", comparable(body))


def comparable(body: bytes) -> bytes:
    """The answer without what differs from one asking to the next: ids and times.

    In a stream also how many tokens came at once, which depends on how busy the machine is.
    """
    if body.startswith(b"data: "):
        body = _merged(body)
    return _VARIES.sub(rb'"\1":0', body)


def _merged(stream: bytes) -> bytes:
    """A stream's text in one piece, its other fields as they last were, and how it ended."""
    *events, done = stream.decode().strip().split("\n\n")
    text, last = "", {}
    for event in events:
        data = json.loads(event.removeprefix("data: "))
        for choice in data.pop("choices"):
            delta = choice.pop("delta", choice)
            text += delta.get("text") or delta.get("content") or ""
            last["finish_reason"] = choice["finish_reason"]
        last |= data
    return json.dumps([text, last, done]).encode()
