"""What real vLLM can't serve: right reason, right advice, no try too many, nothing left over.

One daemon, so one zygote: each failure costs what vLLM takes to fail. What vLLM's parser objects to
never gets so far (see test_vllm_flags); a taken NIXL port is in test_vllm_worker.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import COMMAND, Dynorch, running

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

SECONDS = 30.0
"""Within seconds of the last failure `up` has returned; on a slow machine, of so many."""
FILE = """
name = "bad"
model = "{model}"
restart = {{ backoff-initial = "10ms" }}
[frontend]
port = {{port}}
[roles.worker]
engine = "vllm"
vllm = {{ dtype = "float32", enforce-eager = true, max-num-seqs = 8, {flags} }}
"""
SMALL = f"kv-cache-memory-bytes = {64 << 20}"


class Case(NamedTuple):
    """`model` names a directory made by `models`; `said` and `todo` are in sentence and advice."""

    model: str
    flags: str
    cause: str
    said: str
    todo: str
    lives: int = 1


CASES = {
    "a value that a flag can't have": Case("good", 'quantization = "nope"', "config",
                                           "no such quantization: nope", "correct it"),
    "a path that doesn't exist": Case("/no/such/model", SMALL, "config",
                                      "the model's path doesn't exist: /no/such/model", "`model`"),
    "a context that is too long": Case("good", f"max-model-len = 100000, {SMALL}", "config",
                                       "max-model-len 100000 is more than the model was made for",
                                       "set max-model-len to 2048 or less"),
    "an unsupported model": Case("unsupported", SMALL, "config",
                                 "doesn't support the model's architecture: NopeForCausalLM",
                                 "newer vLLM"),
    "a corrupt weight file": Case("corrupt", SMALL, "config", "a weight file is corrupt",
                                  "download the model again"),
    "no weights": Case("empty", SMALL, "config", "directory has no weights", "download"),
    "weights of another model": Case("other", SMALL, "config", "don't fit the model's config.json",
                                     "same model"),
    "too little memory for one request": Case(
        "good", "max-model-len = 2048, kv-cache-memory-bytes = 400_000", "oom-load",
        "max-model-len 2048 doesn't fit into the KV cache", "lower max-model-len to 256", lives=2),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_dir) -> dict[str, Path]:
    """The tiny model, and what can happen to one."""
    root = tmp_path_factory.mktemp("models")
    names = ("corrupt", "empty", "other", "unsupported")
    found = {name: Path(shutil.copytree(model_dir, root / name)) for name in names}
    (found["corrupt"] / "model.safetensors").write_bytes(random.Random(1).randbytes(100_000))
    (found["empty"] / "model.safetensors").unlink()
    edit(found["other"], '"intermediate_size": 256', '"intermediate_size": 512')
    edit(found["unsupported"], "Qwen3ForCausalLM", "NopeForCausalLM")
    return found | {"good": model_dir}


def edit(model: Path, before: str, after: str) -> None:
    config = model / "config.json"
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))


PRIVATE = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
           'mount -t tmpfs -o size=4g tmpfs /dev/shm && exec "$@"', "sh"]  # fmt: skip
"""Runs a command with a /dev/shm of its own."""


@pytest.fixture(scope="module")
def private() -> bool:
    """Whether a mount namespace can be made here."""
    return subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def kept(private):
    """A daemon with something else to do, so that it stays, and its zygote with it."""
    with running() as dynorch:
        dynorch.env["HOME"] = os.environ.get("HOME", "/root")
        text = 'name = "hold"\n[processes.it]\ncommand = ["sleep", "100000"]\n'
        up = [*COMMAND, "up", "-d", str(dynorch.file(text, "hold.toml"))]
        subprocess.run(
            [*PRIVATE, *up] if private else up, env=dynorch.env, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        yield dynorch


def failed(dynorch: Dynorch) -> dict:
    topology = dynorch.topology("bad")
    role = next(role for role in topology["roles"] if role["name"] == "worker")
    return role["replicas"][0]


def living(dynorch: Dynorch) -> list[str]:
    """Command lines of the processes that carry the tag of a life of the worker."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"={LIFE}".encode() in (entry / "environ").read_bytes():
                in_ours = str(dynorch.run_dir).encode() in (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
                if in_ours and words:
                    found.append(words.replace(b"\0", b" ").decode())
    return found


LIFE = "bad/worker-0.0#"


def assert_explained(dynorch: Dynorch, case: Case, last_line: str) -> None:
    replica = failed(dynorch)
    assert (replica["phase"], replica["cause"]) == ("failed", case.cause), replica["reason"]
    assert case.said in replica["reason"]
    assert case.todo in replica["advice"]
    assert replica["incarnation"] == case.lives
    assert last_line.endswith(f"{replica['reason']}; {replica['advice']}")
    assert living(dynorch) == []
    assert replica["workers"][0]["pid"] is None


@pytest.mark.parametrize("name", CASES)
def test_what_can_not_be_served_is_explained_and_not_tried_too_often(kept, models, name):
    case = CASES[name]
    model = str(models.get(case.model, case.model))
    text = FILE.format(model=model, flags=case.flags)
    try:
        done = kept("up", "-d", kept.file(text, "bad.toml"), code=1, timeout=200)
        returned = time.time()
        assert_explained(kept, case, done.stdout.splitlines()[-1])
        events = kept("events", "--json", "-n", "200").stdout
        assert events.count(failed(kept)["reason"][:60]) > 0
        assert returned - last_failure(events) < SECONDS
    finally:
        kept("down", "bad", "--now", code=None)
    assert not list((kept.run_dir / "lives").glob("*worker*"))


def last_failure(events: str) -> float:
    """When the daemon said that the worker has failed for good."""
    found = [json.loads(line) for line in events.splitlines()]
    return next(e["wall"] for e in reversed(found) if e["phase"] == "failed")


def test_a_full_shm_is_named_with_its_numbers(kept, model_dir, private):
    """64 MiB, as in a container that nobody gave more."""
    if not private:
        pytest.skip("NOT TESTED: a full /dev/shm. No mount namespace can be made here (not root?)")
    daemon = kept.daemon_pid()
    remount = ["mount", "-o", "remount,size=64m", "/dev/shm"]
    subprocess.run(["nsenter", f"--mount=/proc/{daemon}/ns/mnt", *remount], check=True)
    case = Case("good", SMALL, "start-crash", "shared memory (/dev/shm) is too small or full: ",
                "--shm-size", lives=3)  # fmt: skip
    text = FILE.format(model=model_dir, flags=f"max-model-len = 512, {SMALL}")
    try:
        done = kept("up", "-d", kept.file(text, "bad.toml"), code=1, timeout=200)
        assert_explained(kept, case, done.stdout.splitlines()[-1])
        assert "MiB are wanted, " in failed(kept)["reason"]
        left = Path(f"/proc/{daemon}/root/dev/shm")
        assert [path.name for path in left.iterdir()] == []
    finally:
        kept("down", "bad", "--now", code=None)
