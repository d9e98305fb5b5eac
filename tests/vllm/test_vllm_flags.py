"""vLLM's own parser reads a file's flags before anything is started."""

import sys

import pytest

from tests.e2e.conftest import running
from tests.vllm import tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
"""The imports take ten seconds, and a hundred where others use the machine."""

TOPOLOGY = """
name = "t"
model = "MODEL"
MORE
[frontend]
port = {port}
[roles.worker]
engine = "vllm"
gpus = 0
"""
BAD = """
vllm = { max-modl-len = 512, enforce-eager = true, seed = "many", block-size = 16, \
tool-call-parser = "no-such" , enable-auto-tool-choice = true }
"""


@pytest.fixture(scope="module")
def dynorch():
    with running() as one:
        yield one


def up(dynorch, model_dir, text: str):
    text = TOPOLOGY.replace("MODEL", str(model_dir)) + text
    return dynorch("up", "-d", dynorch.file(text.replace("MORE", "")), code=2, timeout=500)


def test_all_wrong_flags_are_told_at_once_with_their_lines(dynorch, model_dir):
    said = up(dynorch, model_dir, BAD).stderr
    line = next(n for n, text in enumerate((TOPOLOGY + BAD).splitlines(), 1) if "modl" in text)
    where = f"t.toml:{line}: roles.worker.vllm."
    assert f"{where}max-modl-len: vLLM has no such flag; did you mean max-model-len?" in said
    assert f"{where}seed: invalid" in said
    assert "no-such" in said
    assert dynorch("status", code=None).stdout.count("t/") == 0


def test_ranks_of_a_dense_model_are_refused(dynorch, model_dir):
    said = up(dynorch, model_dir, "data-parallel = 2\n").stderr
    assert "roles.worker.data-parallel: a dense model has no experts" in said
    assert "write replicas = 2 instead" in said


def test_flags_are_read_in_the_environment_that_the_file_names(dynorch, tmp_path):
    model = tiny_model.make(tmp_path / "m")
    text = TOPOLOGY.replace("MODEL", str(model)).replace("MORE", f'python = "{sys.executable}"')
    file = dynorch.file(text + "vllm = { seed = 'many' }\n")
    assert (
        "roles.worker.vllm.seed: invalid" in dynorch("up", "-d", file, code=2, timeout=500).stderr
    )
