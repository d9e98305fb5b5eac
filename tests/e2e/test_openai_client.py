"""The official OpenAI client against a whole dynorch on the simulated engine."""

import pytest

from tests.e2e.conftest import Dynorch
from tests.e2e.test_up_down import client_of
from tests.openai_contract import CONTRACT, disconnects

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


def test_a_client_that_leaves_frees_its_request(served):
    disconnects(client_of(served), "tiny", served.inflight)
