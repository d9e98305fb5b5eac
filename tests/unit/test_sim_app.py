"""The simulator speaks OpenAI's language: judged by the official client's own models."""

import asyncio

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.asgi import ask, call, sim_app
from workers.runtime.canary import MARK
from workers.sim import tokens

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"


def valid(model, data):
    """Parse strictly: the client itself would swallow anything."""
    return model.model_validate(data, strict=True)


def test_models():
    answer = ask("/v1/models", options={"max-model-len": 512})
    [model] = answer.json["data"]
    assert valid(Model, model).id == "m"
    assert (model["owned_by"], model["max_model_len"]) == ("dynorch-sim", 512)
    assert answer.headers[b"x-dynorch-engine"] == b"sim"


def test_completion():
    answer = ask(COMPLETE, {"model": "m", "prompt": "hello"}, headers=[(b"x-request-id", b"r1")])
    assert answer.headers[b"x-dynorch-engine"] == b"sim"
    body = valid(Completion, answer.json)
    assert body.id == "cmpl-r1"
    assert body.choices[0].finish_reason == "length"
    assert (body.usage.prompt_tokens, body.usage.completion_tokens) == (5, 16)
    assert len(tokens.encode(body.choices[0].text)) == 16


def test_chat():
    body = valid(ChatCompletion, ask(CHAT, {"model": "m", "messages": HELLO}).json)
    assert body.choices[0].message.role == "assistant"
    assert body.choices[0].finish_reason == "stop"
    assert body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_chat_limit(limit):
    body = ask(CHAT, {"messages": HELLO, limit: 7}).json
    assert body["usage"]["completion_tokens"] == 7
    assert body["choices"][0]["finish_reason"] == "length"


def test_streamed_chat_equals_whole():
    request = {"messages": HELLO, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}
    whole = ask(CHAT, request).json["choices"][0]
    answer = ask(CHAT, {**request, "stream": True})
    assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    chunks = [valid(ChatCompletionChunk, event) for event in answer.events]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content for c in chunks) == whole["message"]["content"]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 9
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks)
    logprobs = [e["choices"][0]["logprobs"]["content"][0] for e in answer.events[1:]]
    assert logprobs == whole["logprobs"]["content"]


def test_streamed_completion_equals_whole():
    request = {"prompt": "hello", "max_tokens": 9, "logprobs": 2}
    whole = valid(Completion, ask(COMPLETE, request).json).choices[0]
    events = ask(COMPLETE, {**request, "stream": True}).events
    chunks = [valid(Completion, {"finish_reason": "length", **event}) for event in patched(events)]
    assert "".join(c.choices[0].text for c in chunks) == whole.text
    offsets = [c.choices[0].logprobs.text_offset[0] for c in chunks]
    assert offsets == whole.logprobs.text_offset == list(range(0, 45, 5))


def patched(events):
    """The client's model has no null `finish_reason`, though every server sends it."""
    for event in events:
        for choice in event["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "length"
        yield event


def test_usage_at_the_end():
    options = {"include_usage": True}
    events = ask(
        CHAT, {"messages": HELLO, "max_tokens": 3, "stream": True, "stream_options": options}
    ).events
    assert all("usage" not in event for event in events[:-1])
    last = valid(ChatCompletionChunk, events[-1])
    assert (last.choices, last.usage.completion_tokens) == ([], 3)


def test_continuous_usage():
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = ask(
        COMPLETE, {"prompt": "a", "max_tokens": 3, "stream": True, "stream_options": options}
    ).events
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]


def test_stop_string_is_never_seen():
    free = ask(COMPLETE, {"prompt": "hello", "max_tokens": 12}).json["choices"][0]["text"]
    stop = free[23:31]
    request = {"prompt": "hello", "max_tokens": 12, "stop": [stop], "stream": True}
    events = ask(COMPLETE, request).events
    assert "".join(e["choices"][0]["text"] for e in events) == free[:23]
    last = events[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


def test_several_prompts_and_choices():
    body = ask(COMPLETE, {"prompt": ["a", "bb"], "n": 2, "max_tokens": 2}).json
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in body["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 11, "completion_tokens": 8}


def test_streamed_choices():
    events = ask(CHAT, {"messages": HELLO, "n": 3, "max_tokens": 4, "stream": True}).events
    said = {0: "", 1: "", 2: ""}
    for event in events:
        [choice] = event["choices"]
        said[choice["index"]] += choice["delta"]["content"]
    assert len(set(said.values())) == 1
    assert len(tokens.encode(said[0])) == 4


def test_prompt_as_ids():
    ids = tokens.encode("hello there")
    by_text = ask(COMPLETE, {"prompt": "hello there"}).json
    assert ask(COMPLETE, {"prompt": ids}).json["choices"] == by_text["choices"]
    two = ask(COMPLETE, {"prompt": [ids, ids]}).json["choices"]
    assert [choice["text"] for choice in two] == [by_text["choices"][0]["text"]] * 2


def test_echo():
    request = {"prompt": "hello", "max_tokens": 2}
    text = ask(COMPLETE, request).json["choices"][0]["text"]
    assert ask(COMPLETE, {**request, "echo": True}).json["choices"][0]["text"] == "hello" + text
    events = ask(COMPLETE, {**request, "echo": True, "stream": True}).events
    assert "".join(e["choices"][0]["text"] for e in events) == "hello" + text


def test_token_ids():
    request = {"messages": HELLO, "max_tokens": 3, "return_token_ids": True}
    whole = ask(CHAT, request).json
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    events = ask(CHAT, {**request, "stream": True}).events
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [e["choices"][0]["token_ids"][0] for e in events[1:]] == whole["choices"][0]["token_ids"]
    again = ask(COMPLETE, {"prompt": whole["prompt_token_ids"], "max_tokens": 3})
    assert again.json["choices"][0]["text"] == whole["choices"][0]["message"]["content"]


def test_token_ids_of_a_completion_stream():
    request = {"prompt": [5, 6], "max_tokens": 2, "return_token_ids": True, "stream": True}
    first, second = ask(COMPLETE, request).events
    assert first["choices"][0]["prompt_token_ids"] == [5, 6]
    assert "prompt_token_ids" not in second["choices"][0]


def test_continued_chat():
    whole = ask(CHAT, {"messages": HELLO, "max_tokens": 8}).json["choices"][0]["message"]["content"]
    partial = [*HELLO, {"role": "assistant", "content": whole[:20]}]
    request = {
        "messages": partial, "max_tokens": 4,
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip
    assert ask(CHAT, request).json["choices"][0]["message"]["content"] == whole[20:]


def test_tokenize_and_back():
    body = ask("/tokenize", {"prompt": "a kamo b", "return_token_strs": True}).json
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert ask("/detokenize", {"tokens": body["tokens"]}).json == {"prompt": "a kamo b"}
    chat = ask("/tokenize", {"messages": HELLO}).json
    assert chat["count"] == ask(CHAT, {"messages": HELLO}).json["usage"]["prompt_tokens"]


def test_health_and_metrics():
    async def run():
        app = await sim_app()
        await call(app, COMPLETE, {"prompt": "a", "max_tokens": 5})
        return await call(app, "/health"), await call(app, "/metrics")

    health, metrics = asyncio.run(run())
    assert (health.status, health.body) == (200, b"")
    assert b"dynorch_sim_tokens_total 5.0" in metrics.body


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "param"),
    [
        (CHAT, {"model": "x", "messages": HELLO}, 404, "NotFoundError", "model"),
        (CHAT, {}, 400, "BadRequestError", None),
        (CHAT, {"messages": []}, 400, "BadRequestError", "messages"),
        (CHAT, {"messages": [{"role": "king"}]}, 400, "BadRequestError", "messages[0].role"),
        (CHAT, {"messages": HELLO, "max_tokens": "9"}, 400, "BadRequestError", "max_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "BadRequestError", "max_tokens"),
        (CHAT, {"messages": HELLO, "top_logprobs": 3}, 400, "BadRequestError", "top_logprobs"),
        (CHAT, {"messages": HELLO, "n": 0}, 400, "BadRequestError", "n"),
        (CHAT, {"messages": HELLO, "max_tokens": 5000}, 400, "BadRequestError", "input_tokens"),
        (COMPLETE, {"prompt": ""}, 400, "BadRequestError", "prompt"),
        (COMPLETE, {"prompt": [1, "a"]}, 400, "BadRequestError", "prompt"),
        (COMPLETE, {"prompt": [99999]}, 400, "BadRequestError", "prompt"),
        (COMPLETE, {"prompt": ["a"] * 1025}, 400, "BadRequestError", "prompt"),
        (COMPLETE, {"prompt": "a", "stop": ""}, 400, "BadRequestError", "stop"),
        (COMPLETE, {"prompt": "a", "stream_options": {}}, 400, "BadRequestError", "stream_options"),
        ("/v1/embeddings", {}, 404, "NotFoundError", None),
        ("/health", {}, 405, "Error", None),
        ("/detokenize", {"tokens": [-1]}, 400, "BadRequestError", "tokens"),
    ],
)
def test_refusals(path, body, status, kind, param):
    answer = ask(path, body)
    error = answer.json["error"]
    assert (answer.status, error["code"], error["type"], error["param"]) == (
        status, status, kind, param,
    )  # fmt: skip


async def until(condition):
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("not within 100 loop passes")


def test_a_client_that_leaves_frees_the_batch():
    async def run():
        app = await sim_app(step=60.0)
        leave = asyncio.Event()
        request = {"prompt": "a", "max_tokens": 4000}
        task = asyncio.create_task(call(app, COMPLETE, request, leave=leave))
        await until(lambda: app._stepper.running)
        leave.set()
        assert await task is None
        return app._stepper

    stepper = asyncio.run(run())
    assert (stepper.running, stepper.blocks.free) == (0, 16_384)


def test_batch_limit_and_blocks_make_requests_wait():
    async def run():
        app = await sim_app(
            **{"kv-blocks": 8, "block-size": 16, "max-model-len": 128, "step": 60.0}
        )
        request = {"prompt": "a" * 20, "max_tokens": 30}
        asks = [asyncio.create_task(call(app, COMPLETE, request)) for _ in range(3)]
        await until(lambda: app._stepper.running)
        found = app._stepper.running, app._stepper.waiting, app._stepper.blocks.free
        for task in asks:
            task.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        return found, app._stepper.blocks.free

    assert asyncio.run(run()) == ((2, 1, 0), 8)


def test_queued_requests_are_all_answered():
    async def run():
        app = await sim_app(**{"batch-max": 2})
        request = {"prompt": "a", "max_tokens": 5}
        return await asyncio.gather(*(call(app, COMPLETE, request) for _ in range(9)))

    answers = asyncio.run(run())
    assert {answer.json["choices"][0]["text"] for answer in answers} == {
        answers[0].json["choices"][0]["text"]
    }


def test_the_canary_is_no_request():
    fault = {"fault": "engine-death", "after-requests": 1}

    async def run():
        app = await sim_app(faults=[fault])
        canary = await call(app, COMPLETE, {"prompt": "a", "max_tokens": 1}, headers=[MARK])
        first = await call(app, COMPLETE, {"prompt": "a", "max_tokens": 1})
        return canary.status, first.status, (await call(app, "/health")).status

    assert asyncio.run(run()) == (200, 500, 503)


def test_death_in_a_stream_is_said_in_it():
    fault = {"fault": "engine-death", "after-tokens": 4, "line": "gone"}
    events = ask(
        COMPLETE, {"prompt": "a", "stream": True, "max_tokens": 50}, options={"faults": [fault]}
    ).events
    assert len(events) == 4 + 1
    assert events[-1]["error"] == {
        "message": "gone", "type": "InternalServerError", "param": None, "code": 500,
    }  # fmt: skip


def test_a_template_that_prints_the_date():
    plain = ask(CHAT, {"messages": HELLO, "max_tokens": 5, "return_token_ids": True}).json
    body = {"messages": HELLO, "max_tokens": 5, "return_token_ids": True}
    dated = ask(CHAT, body, options={"today": "31 December"}).json
    assert "31 December" in tokens.decode(dated["prompt_token_ids"])
    assert dated["prompt_token_ids"] != plain["prompt_token_ids"]
    assert dated["choices"][0]["message"] != plain["choices"][0]["message"]
    counted = ask("/tokenize", {"messages": HELLO}, options={"today": "31 December"}).json
    assert counted["tokens"] == dated["prompt_token_ids"]


def test_tokens_that_prefill_forwards_are_the_prompt():
    """As in vLLM: of a chat the messages aren't rendered then, of a completion it's no key."""
    first = ask(CHAT, {"messages": HELLO, "max_tokens": 5, "return_token_ids": True},
                options={"today": "31 December"}).json  # fmt: skip
    body = {
        "messages": HELLO, "max_tokens": 5, "return_token_ids": True,
        "kv_transfer_params": {"prompt_token_ids": first["prompt_token_ids"]},
    }  # fmt: skip
    second = ask(CHAT, body, options={"today": "1 January"}).json
    assert second["choices"] == first["choices"]
    assert second["prompt_token_ids"] == first["prompt_token_ids"]
    assert second["usage"] == first["usage"]
    told = {"prompt": "hello", "kv_transfer_params": {"prompt_token_ids": [1, 2, 3]}}
    assert ask(COMPLETE, told).json["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("ids", "said"),
    [([], "non-empty list"), ("x", "non-empty list"), ([-1], "non-negative"), ([True], "non-neg"),
     ([10**6], "out of vocabulary")],
)  # fmt: skip
def test_wrong_tokens_are_refused(ids, said):
    answer = ask(CHAT, {"messages": HELLO, "kv_transfer_params": {"prompt_token_ids": ids}})
    assert answer.status == 400
    assert said in answer.json["error"]["message"]
    assert answer.json["error"]["param"] == "kv_transfer_params.prompt_token_ids"
