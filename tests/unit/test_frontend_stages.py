"""Which requests are split, and that neither stage is sent anything but what it must be."""

import json

import pytest

from workers.frontend import intake, stages
from workers.frontend.intake import Ask

CHAT, COMPLETIONS = stages.CHAT, stages.COMPLETIONS
HI = [{"role": "user", "content": "hi"}]


def made(path: str, body: bytes | dict, method: str = "POST") -> tuple[Ask, intake.Fields | None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sifted = intake.sift(data)
    headers = [(b"host", b"h"), (b"x-request-id", b"r"), (b"content-length", b"%d" % len(data))]
    return Ask(method, path, b"", headers, sifted.body), sifted.fields


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI}),
        (CHAT, {"messages": HI, "n": 1, "stream": True, "logprobs": True, "top_logprobs": 2}),
        (CHAT, {"messages": HI, "echo": False, "prompt_logprobs": None, "best_of": 1}),
        (COMPLETIONS, {"prompt": "x"}),
        (COMPLETIONS, {"prompt": ["x"]}),
        (COMPLETIONS, {"prompt": [1, 2, 3]}),
        (COMPLETIONS, {"prompt": [[1, 2, 3]]}),
        (COMPLETIONS, b'{"prompt": [ \n 1 , 2 ] }'),
    ],
)
def test_one_prompt_is_split(path, body):
    assert stages.whole(*made(path, body)) == ""


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (COMPLETIONS, {"prompt": ["x", "y"]}, "several prompts"),
        (COMPLETIONS, {"prompt": [[1], [2]]}, "several prompts"),
        (COMPLETIONS, {"prompt": []}, "no prompt"),
        (COMPLETIONS, {"prompt": None}, "no prompt"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "no prompt"),
        (COMPLETIONS, {}, "no prompt"),
        (COMPLETIONS, {"prompt": "x", "echo": True}, "echo"),
        (COMPLETIONS, {"prompt": "x", "prompt_logprobs": 0}, "prompt logprobs"),
        (COMPLETIONS, {"prompt": "x", "use_beam_search": True}, "beam search"),
        (COMPLETIONS, {"prompt": "x", "best_of": 2}, "best_of"),
        (COMPLETIONS, {"prompt": "x", "n": 2}, "several answers"),
        (CHAT, {"messages": HI, "n": 3}, "several answers"),
        (COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": -1}, "prompt truncation"),
        (COMPLETIONS, {"prompt": "x", "prompt_embeds": "AA=="}, "prompt embeddings"),
        (CHAT, {"messages": HI, "echo": 1}, "echo"),
        (CHAT, {"messages": HI, "return_prompt_text": True}, "prompt text"),
        (CHAT, {"messages": "hi"}, "no messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"image_url": {"url": "u"}}]}]}, "media"),
        ("/v1/responses", {"input": "x"}, "another API"),
        ("/v1/messages", {"messages": HI}, "another API"),
        ("/v1/embeddings", {"input": "x"}, "another API"),
        ("/tokenize", {"prompt": "x"}, "another API"),
        (COMPLETIONS, b'{"prompt":"x","t":NaN}', "unread body"),
    ],
)
def test_everything_else_stays_whole(path, body, reason):
    assert stages.whole(*made(path, body)) == reason


def test_a_get_is_no_request_for_tokens():
    assert stages.whole(*made(CHAT, b"", "GET")) == "another API"


def test_what_prefill_gets():
    body = {
        "model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": True},
        "n": 1, "max_tokens": 99, "min_tokens": 9, "logprobs": True, "top_logprobs": 3,
        "temperature": 0, "tools": [{"type": "function"}], "cache_salt": "s", "priority": 2,
    }  # fmt: skip
    ask, fields = made(CHAT, body)
    sent = stages.prefill_ask(ask, fields)
    assert json.loads(sent.body) == {
        "model": "m", "messages": HI, "stream": False, "max_tokens": 1, "max_completion_tokens": 1,
        "temperature": 0, "tools": [{"type": "function"}], "cache_salt": "s", "priority": 2,
        "return_token_ids": True, "kv_transfer_params": {
            "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
            "remote_block_ids": None, "remote_host": None, "remote_port": None,
        },
    }  # fmt: skip
    assert dict(sent.headers)[b"content-length"] == b"%d" % len(sent.body)
    assert dict(sent.headers)[b"x-request-id"] == b"r"


def test_a_completion_has_no_limit_of_a_chat():
    ask, fields = made(COMPLETIONS, {"prompt": "x", "max_completion_tokens": 7})
    sent = json.loads(stages.prefill_ask(ask, fields).body)
    assert (sent["max_tokens"], "max_completion_tokens" in sent) == (1, False)
    # Its prompt needs no template: both stages read the same text, so they see the same tokens.
    assert "return_token_ids" not in sent


def test_the_prompt_reaches_prefill_byte_for_byte():
    raw = b'[ {"role":"user",  "content":"\\u00e4\xc3\xa4 1e400" , "n":1.50} ]'
    ask, fields = made(CHAT, b'{"messages": ' + raw + b', "seed":12345678901234567890123}')
    sent = stages.prefill_ask(ask, fields).body
    assert b'"messages":' + raw in sent
    assert b'"seed":12345678901234567890123' in sent


def test_what_decode_gets_is_the_request_byte_for_byte_and_the_parameters():
    body = b'{ "model":"m", "messages":[ ],\t"x":{"a":"}"} } \r\n'
    ask, _ = made(CHAT, body)
    sent = stages.decode_ask(ask, b'{"a" : 1}')
    assert sent.body == (
        b'{ "model":"m", "messages":[ ],\t"x":{"a":"}"} ,"kv_transfer_params":{"a" : 1}}'
    )
    assert json.loads(sent.body)["kv_transfer_params"] == {"a": 1}
    assert dict(sent.headers)[b"content-length"] == b"%d" % len(sent.body)


def test_of_a_key_given_twice_both_stages_see_the_last():
    ask, fields = made(COMPLETIONS, b'{"prompt":["x","y"],"max_tokens":3,"prompt":"z"}')
    assert stages.whole(ask, fields) == ""
    assert json.loads(stages.prefill_ask(ask, fields).body)["prompt"] == "z"
    assert json.loads(stages.decode_ask(ask, b"{}").body)["prompt"] == "z"


def test_a_ticket_is_bound_to_the_whole_request():
    one, _ = made(COMPLETIONS, {"prompt": "x"})
    other, _ = made(COMPLETIONS, {"prompt": "y"})
    assert stages.digest(one) == stages.digest(one) != stages.digest(other)
