"""What an OpenAI client may expect, whatever engine answers: run against both.

Each function takes the official client and the model's name. `leaves_in_mid_stream` only leaves:
what matters there is seen on the other side, and each engine shows it in its own way.
"""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]


def lists_models(client: OpenAI, model: str) -> None:
    assert model in [each.id for each in client.models.list()]
    assert client.models.retrieve(model).id == model


def completes(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="one two", max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 6
    assert answer.choices[0].finish_reason == "length"
    again = client.completions.create(model=model, prompt="one two", max_tokens=6, temperature=0)
    assert again.choices[0].text == answer.choices[0].text


def chats(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens <= 5
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def streams(client: OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=12, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c for c in chunks if c.choices][-1].choices[0].finish_reason is not None


def leaves_in_mid_stream(client: OpenAI, model: str, tokens: int) -> None:
    stream = client.completions.create(
        model=model, prompt="go on", max_tokens=tokens, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    stream.close()


def errors_are_openai_shaped(client: OpenAI, model: str) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="x")
    assert unknown.value.body["type"]
    with pytest.raises(BadRequestError) as wrong:
        client.completions.create(model=model, prompt="x", max_tokens=-1)
    assert wrong.value.body["message"]


CONTRACT = [lists_models, completes, chats, streams, errors_are_openai_shaped]
