"""A tiny model, what vLLM's own server answers about it, and workers forked from a zygote.

Each is made once in a session, and only one engine runs at a time: the machine may have two cores.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.eventually import eventually
from tests.vllm import tiny_model
from tests.vllm.questions import FLAGS, MODEL, QUESTIONS
from tests.vllm.worker import ROOT, Worker, Zygote, free_port

COLD_START_S = 240


class Answer(NamedTuple):
    status: int
    body: bytes


class Reference(NamedTuple):
    """vLLM's own server on the same model with the same flags."""

    first_answer_s: float
    answers: dict[str, Answer]


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def engine_env(tmp_path_factory) -> dict[str, str]:
    """The environment of every engine here; caches are the user's, so compiling is done once."""
    cache = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache/vllm")
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "SPT_NOENV": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
        "VLLM_DISABLE_LOG_LOGO": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


@pytest.fixture(scope="session")
def reference(model_dir, engine_env, tmp_path_factory) -> Reference:
    """Start `vllm serve`, ask it everything, stop it."""
    port, log = free_port(), tmp_path_factory.mktemp("reference") / "log"
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    argv += ["--model", str(model_dir), "--served-model-name", MODEL]
    for flag, value in FLAGS.items():
        argv.append(f"--{flag}")
        if value is not True:
            argv.append(value if isinstance(value, str) else json.dumps(value))
    began = time.monotonic()
    with log.open("wb") as out:
        server = subprocess.Popen(
            argv, env=engine_env, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: _first_answer(server, url, log), COLD_START_S, every_s=0.2)
        first_answer_s = time.monotonic() - began
        answers = {name: ask(url, path, body) for name, (path, body) in QUESTIONS.items()}
    finally:
        server.terminate()
        server.wait(60)
    return Reference(first_answer_s, answers)


@pytest.fixture(scope="session")
def zygote(engine_env):
    """One zygote with vLLM imported."""
    with Zygote(engine_env) as zygote:
        yield zygote


@pytest.fixture(scope="session")
def worker(zygote, model_dir, engine_env, tmp_path_factory):
    """One ready worker that nobody kills."""
    with Worker(zygote, engine_env, tmp_path_factory.mktemp("w"), model_dir, FLAGS) as worker:
        worker.wait_ready()
        yield worker


def ask(url: str, path: str, body: dict | None = None) -> Answer:
    """One request over HTTP."""
    request = urllib.request.Request(
        url + path,
        None if body is None else json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return Answer(response.status, response.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read())


def _first_answer(server: subprocess.Popen, url: str, log: Path) -> bool:
    if server.poll() is not None:
        pytest.fail(f"vLLM's own server exited: {log.read_text()[-3000:]}")
    try:
        return ask(url, *QUESTIONS["completion"]).status == 200
    except OSError:
        return False
