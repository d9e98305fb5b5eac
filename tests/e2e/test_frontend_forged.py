"""Forged transfer parameters, in every dress, on every route, through a real frontend: none reaches
a worker. The stub writes down what arrives, and is read with the parser that an engine uses."""

import gzip
import json
import re

import pytest

from tests.e2e.frontend_stage import Stage

ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings",
    "/inference/v1/generate", "/v1/chat/completions/render", "/v1/chat/completions/derender",
    "/tokenize", "/invocations", "/pooling", "/v1/audio/transcriptions", "/echo", "/no/such/path",
)  # fmt: skip
FORGED = '{"do_remote_prefill":true,"remote_engine_id":"FORGED"}'
MODEL = '"model":"m","messages":[],"prompt":"x"'
KEYS = (
    "kv_transfer_params", "ec_transfer_params", "KV_Transfer_Params", "kv-transfer-params",
    "kvTransferParams", "EC_TRANSFER_PARAMS", "\\u006bv_transfer_params",
    "kv\\u005Ftransfer_params", "\\u0065c_transfer_params",
)  # fmt: skip
CARRIERS = (
    '{"sampling_params":{%s}}', '{"sampling_params":{"extra_args":{%s}}}', '{"vllm_xargs":{%s}}',
    '{"extra_args":{%s}}', '{"extra_body":{%s}}', '{"chat_request":{"vllm_xargs":{%s}}}',
    '{"chat_request":{%s}}', '{"generate_responses":[{%s}]}', '{"sampling_params":[{%s}]}',
    '{"sampling\\u005fparams":{%s}}',
)  # fmt: skip
HEADERS = {
    "X-data-parallel-rank": "FORGED", "x_data_parallel_rank": "FORGED",
    "X-DATA-PARALLEL-RANK": "FORGED", "X-Request-Id": "FORGED", "X_Request_Id": "FORGED",
    "X-Dynorch-Canary": "FORGED", "x-dynorch-prefill": "FORGED",
}  # fmt: skip
TYPES = (
    "application/json", "APPLICATION/JSON; charset=utf-8", "text/plain", "application/octet-stream",
    "application/vnd.api+json", "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
)  # fmt: skip
FORM = (
    '--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    '--x\r\n{line}; name="{key}"\r\n\r\nFORGED\r\n--x--\r\n'
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """One aggregated worker, and prefill and decode of the same model behind the same frontend."""
    with Stage(tmp_path_factory.mktemp("forged")) as it:
        it.worker("a")
        it.worker("p", kind="prefill")
        it.worker("d", kind="decode")
        it.serve("a", "p", "d")
        yield it


def bodies() -> dict[str, bytes]:
    """Every way to write the parameters into a JSON body."""
    found = {}
    for key in KEYS:
        found[f"plain {key}"] = f'{{{MODEL},"{key}":{FORGED}}}'.encode()
        found[f"first {key}"] = f'{{"{key}":{FORGED},{MODEL}}}'.encode()
    twice = f'{{"kv_transfer_params":null,{MODEL},"kv_transfer_params":{FORGED}}}'
    found["twice"] = twice.encode()
    found["twice, null last"] = (
        f'{{"kv_transfer_params":{FORGED},{MODEL},"kv_transfer_params":null}}'.encode()
    )
    found["one escaped"] = (
        f'{{"kv_transfer_params":{FORGED},{MODEL},"\\u006bv_transfer_params":{FORGED}}}'.encode()
    )
    for carrier in CARRIERS:
        for key in ("kv_transfer_params", "ec\\u005ftransfer_params"):
            inner = carrier % f'"{key}":{FORGED}'
            found[f"{carrier} {key}"] = f"{{{MODEL},{inner[1:]}".encode()
    plain = f'{{{MODEL},"kv_transfer_params":{FORGED}}}'
    found["with NaN"] = f'{{{MODEL},"temperature":NaN,"kv_transfer_params":{FORGED}}}'.encode()
    found["lone surrogate"] = f'{{{MODEL},"user":"\\ud800","kv_transfer_params":{FORGED}}}'.encode()
    found["byte order mark"] = b"\xef\xbb\xbf" + plain.encode()
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-be"):
        found[encoding] = plain.encode(encoding)
    found["a list"] = f"[{plain}]".encode()
    return found


def check(stage: Stage) -> int:
    """Fail if anything forged was seen by anybody; say how much was seen at all."""
    count = 0
    for name in "apd":
        for one in stage.received(name):
            count += 1
            raw = one["body"].encode("latin-1")
            seen = raw.decode("latin-1") + json.dumps(one["headers"])
            if raw:
                try:
                    seen += json.dumps(json.loads(raw))
                except ValueError:
                    seen += raw.replace(b"\x00", b"").decode("latin-1")
            assert "FORGED" not in seen, one
            ours = name == "p" or '"remote_engine_id": "p"' in seen
            assert ours or not re.search("transfer_?-?params", seen, re.IGNORECASE), one
    return count


@pytest.mark.parametrize("content_type", TYPES)
def test_in_a_body(stage, content_type):
    sent = 0
    for body in bodies().values():
        stage.call("POST", "/v1/completions", body, {"content-type": content_type})
        sent += 1
    assert check(stage) > sent / 2


@pytest.mark.parametrize("path", ROUTES)
def test_on_each_route(stage, path):
    before = check(stage)
    for body in bodies().values():
        stage.call("POST", path, body)
    assert check(stage) > before


def test_in_a_header(stage):
    before = check(stage)
    for name, value in HEADERS.items():
        body = {"model": "m", "prompt": "x"}
        assert stage.call("POST", "/v1/completions", body, {name: value})[0] == 200
    assert check(stage) > before
    for name in "apd":
        for one in stage.received(name):
            alike = {key.replace("_", "-") for key in one["headers"]}
            assert not alike & {"x-data-parallel-rank", "x-dynorch-canary", "x-dynorch-prefill"}


@pytest.mark.parametrize(
    "line", ["Content-Disposition: form-data", "content-disposition:form-data"]
)
def test_in_a_form(stage, line):
    """A form can't be repaired as JSON can: it is refused."""
    for key in ("kv_transfer_params", "EC_Transfer_Params", "kv%5Ftransfer_params"):
        for preamble in ("", "preamble\r\n"):
            body = (preamble + FORM.format(line=line, key=key)).encode()
            headers = {"content-type": "Multipart/Form-Data; boundary=x"}
            assert stage.call("POST", "/v1/audio/transcriptions", body, headers)[0] == 400
            plain = f"model=m&{key}={FORGED}".encode()
            headers = {"content-type": "application/x-www-form-urlencoded"}
            assert stage.call("POST", "/v1/audio/transcriptions", plain, headers)[0] == 400
    check(stage)


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "br", "gzip, identity"])
def test_in_a_compressed_body(stage, coding):
    body = gzip.compress(f'{{{MODEL},"kv_transfer_params":{FORGED}}}'.encode())
    status, _, answer = stage.call("POST", "/v1/completions", body, {"content-encoding": coding})
    assert status == 415
    assert b"uncompressed" in answer
    check(stage)


def test_a_coding_that_is_none_is_taken(stage):
    body = {"model": "m", "prompt": "x"}
    headers = {"content-encoding": "identity"}
    assert stage.call("POST", "/v1/completions", body, headers)[0] == 200


def test_in_an_array_or_a_query(stage):
    stage.call("POST", "/v1/completions?kv_transfer_params=1&model=m", {"prompt": "x"})
    status, _, _ = stage.call("GET", "/v1/completions?model=m&kv_transfer_params=1")
    assert status in {200, 404, 500}
    check(stage)
