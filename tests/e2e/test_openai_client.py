"""The official OpenAI client against a whole dynorch on the simulated engine."""

import pytest
from openai import OpenAI

from tests.e2e.conftest import Dynorch
from tests.e2e.test_up_down import client_of
from tests.eventually import eventually
from tests.openai_contract import CONTRACT, leaves_in_mid_stream

FILE = """
name  = "contract"
model = "tiny"
[frontend]
port = {port}
replicas = 2
[roles.worker]
engine = "sim"
replicas = 2
sim = { step = "20ms" }
"""


@pytest.fixture(scope="module")
def served(dynorch_factory) -> Dynorch:
    dynorch = dynorch_factory()
    dynorch("up", "-d", dynorch.file(FILE))
    return dynorch


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda promise: promise.__name__)
def test_contract(served, promise):
    promise(client_of(served), "tiny")


def leaving_frees(served: Dynorch, client: OpenAI, model: str, tokens: int) -> None:
    """Leave in mid-stream: the engine must stop long before it has made all the tokens."""
    before = served.tokens()
    leaves_in_mid_stream(client, model, tokens)

    def ended():
        workers = served.engine_workers()
        made = sum(worker["tokens"] for worker in workers) - before
        assert made > 0
        assert sum(worker["inflight"] for worker in workers) == 0
        return made

    assert eventually(ended, within_s=60) < tokens


def test_a_client_that_leaves_frees_its_request(served):
    leaving_frees(served, client_of(served), "tiny", tokens=1000)
