"""What may come in: forged KV parameters never pass, whatever the JSON looks like."""

import json

import pytest

from workers.frontend import intake
from workers.frontend.problems import Problem

FORGED = {"do_remote_prefill": True}


def engine_reads(body: bytes) -> dict:
    """The engine reads JSON with Python's parser; what it sees is what counts."""
    return json.loads(body)


def test_untouched_bodies_pass_byte_for_byte():
    body = b'{ "model" : "m",\t"messages": [], "stream":true, "x": 1.50 }'
    sifted = intake.sift(body)
    assert (sifted.body, sifted.model, sifted.stripped) == (body, "m", False)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","kv_transfer_params":{"do_remote_prefill":true}}',
        b'{"model":"m","ec_transfer_params":{"a":1}}',
        b'{"model":"m","kv\\u005ftransfer_params":{"do_remote_prefill":true}}',
        b'{"kv_transfer_params":1,"model":"x","kv_transfer_params":{"a":1},"model":"m"}',
        b'{"model":"m","temperature":NaN,"kv_transfer_params":{"a":1}}',
        b'{"model":"m","a":"\\ud800","kv_transfer_params":{"a":1}}',
        b'\xef\xbb\xbf{"model":"m","kv_transfer_params":{"a":1}}',
        '{"model":"m","kv_transfer_params":{"a":1}}'.encode("utf-16"),
        '{"model":"m","kv_transfer_params":{"a":1}}'.encode("utf-32-le"),
        json.dumps({"model": "m", "sampling_params": {"extra_args": {
            "kv_transfer_params": FORGED}}}).encode(),
        b'{"model":"m","sampling_params":{"extra_args":{"kv\\u005ftransfer_params":{}}}}',
        json.dumps({"model": "m", "vllm_xargs": {"kv_transfer_params": "x"}}).encode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("content_type", [b"application/json", b"", b"text/plain"])
def test_what_only_we_may_set_is_taken_out(body, content_type):
    sifted = intake.sift(body, content_type)
    assert sifted.stripped
    assert sifted.model == "m"
    seen = json.dumps(engine_reads(sifted.body))
    assert "transfer_params" not in seen
    assert engine_reads(sifted.body)["model"] == "m"


def test_the_same_words_elsewhere_are_only_words():
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "kv_transfer_params"}]}
    ).encode()
    assert intake.sift(body).body == body
    nested = json.dumps({"model": "m", "metadata": {"kv_transfer_params": "note"}}).encode()
    assert intake.sift(nested).body == nested


def test_numbers_survive_a_rewrite():
    body = b'{"model":"m","seed":123456789012345678901234567890,"t":NaN,"ec_transfer_params":1}'
    again = engine_reads(intake.sift(body).body)
    assert again["seed"] == 123456789012345678901234567890
    assert again["t"] != again["t"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe\xfd", b"{'a': 1}", b"[" * 100_000])
def test_broken_json_is_refused_in_words(body):
    problem = intake.sift(body, b"application/json; charset=utf-8")
    assert isinstance(problem, Problem)
    assert problem.status == 400
    assert "JSON" in problem.message


def test_bodies_that_are_no_json_pass_untouched():
    assert intake.sift(b"\x00\x01", b"application/octet-stream").body == b"\x00\x01"
    assert intake.sift(b"").body == b""
    assert intake.sift(b"[1, 2]").model is None


def test_the_model_of_a_form_is_found():
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n'
        b"Content-Type: audio/wav\r\n\r\n\x00\x01\r\n"
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n'
    )
    sifted = intake.sift(body, b"multipart/form-data; boundary=x")
    assert (sifted.body, sifted.model) == (body, "whisper")


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"model":null}', None),
        (b'{"model":1}', None),
        (b"{}", None),
        (b'{"input":{"model":"other"}}', None),
    ],
)
def test_the_model_is_the_top_level_one(body, model):
    assert intake.sift(body).model == model


def test_headers_forwarded():
    headers = [
        (b"host", b"x"), (b"content-length", b"9"), (b"connection", b"close, X-Gone"),
        (b"x-gone", b"1"), (b"x-request-id", b"theirs"), (b"x-data-parallel-rank", b"3"),
        (b"transfer-encoding", b"chunked"), (b"authorization", b"Bearer t"), (b"te", b"trailers"),
        (b"x-dynorch-canary", b"1"), (b"expect", b"100-continue"),
    ]  # fmt: skip
    heading = intake.survey(headers)
    assert heading.forwarded == [(b"host", b"x"), (b"authorization", b"Bearer t")]
    assert (heading.length, heading.websocket) == (9, False)


def test_headers_returned():
    headers = [(b"Content-Type", b"a/b"), (b"Transfer-Encoding", b"chunked"), (b"server", b"v")]
    assert intake.returned(headers, [(b"x", b"y")]) == [(b"Content-Type", b"a/b"), (b"x", b"y")]


@pytest.mark.parametrize(
    "path",
    ["/sleep", "/sleep/", "/collective_rpc", "/v1/load_lora_adapter", "/adapters/x", "/adapters"],
)
def test_what_steers_the_engine_is_denied(path):
    assert intake.denied(path)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages", "/pooling", "/adaptersx", "/"])
def test_everything_else_is_not(path):
    assert not intake.denied(path)
