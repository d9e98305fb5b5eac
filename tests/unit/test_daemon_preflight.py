"""What engines say about a file before anything starts."""

import asyncio
import json
import sys
from types import SimpleNamespace

import msgspec
import pytest

import workers.vllm
from orchestrator.core.declared import declared
from orchestrator.core.placement import place
from orchestrator.core.plan import build_plan
from orchestrator.daemon.preflight import HELP, Preflight
from orchestrator.host.zygote_link import ZygoteError
from orchestrator.topology.load import parse
from workers.runtime.engine import EngineConfigError
from workers.vllm import verdict

TEXT = """
name = "t"
model = "m"
[roles.a]
engine = "vllm"
python = "/v/python"
[roles.a.vllm]
max-modl-len = 3
seed = "x"
[roles.b]
engine = "vllm"
data-parallel = 2
gpus = 1
[roles.c]
engine = "sim"
"""


class Engines:
    """Zygotes and their forks; the answers are the test's."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.answers: dict[str, list[dict]] = {}
        self.asked: list[tuple[str, str]] = []
        self.questions: dict[str, dict] = {}

    def zygote(self, profile, python):
        self.asked.append((profile, python))
        return SimpleNamespace(until_ready=lambda: self.ready(python))

    async def ready(self, python) -> None:
        if python in self.broken:
            raise ZygoteError(self.broken[python])

    async def question(self, _zygote, entry, blob, *, planned, cwd, limit_s) -> bytes:
        assert (entry, cwd, limit_s) == ("workers.vllm.verdict:main", "/where", 60.0)
        self.questions[planned.replica.role] = json.loads(blob)
        answer = self.answers.get(planned.replica.role)
        return b"" if answer is None else msgspec.json.encode(answer)

    def complaints(self, text=TEXT) -> list[str]:
        topology = parse(text, "t.toml", {})
        plan = build_plan(topology, place(topology, declared("8xH100")))
        preflight = Preflight(self.zygote, self)
        return asyncio.run(preflight.complaints(topology, plan, "/where"))


@pytest.fixture
def engines():
    return Engines()


def test_each_role_of_vllm_is_asked_about_once_where_its_workers_will_run(engines):
    engines.answers = {"a": [], "b": []}
    assert engines.complaints() == []
    assert engines.asked == [("vllm", "/v/python"), ("vllm", "")]
    assert engines.questions["a"]["options"] == {"max-modl-len": 3, "seed": "x"}
    assert engines.questions["b"]["ranks"] == 2
    assert engines.questions["b"]["options"] == {"data-parallel-size": 2}, "ranks differ in it"


def test_what_is_wrong_has_its_line_and_key(engines):
    engines.answers = {
        "a": [{"wrong": "vLLM has no such flag", "flag": "max-modl-len", "near": "max-model-len"},
              {"wrong": "invalid int value: 'x'", "flag": "seed"}],
        "b": [{"wrong": "it is dense", "dense": True}, {"wrong": "no idea"}],
    }  # fmt: skip
    assert engines.complaints() == [
        "t.toml:8: roles.a.vllm.max-modl-len: vLLM has no such flag; did you mean max-model-len?",
        f"t.toml:9: roles.a.vllm.seed: invalid int value: 'x'; {HELP}",
        f"t.toml:10: roles.b.vllm: no idea; {HELP}",
        "t.toml:12: roles.b.data-parallel: it is dense; write replicas = 2 instead",
    ]


def test_an_interpreter_that_will_not_do_is_a_mistake_in_the_file(engines):
    engines.broken = {"/v/python": "cannot run /v/python: No such file"}
    right = "name one whose environment has it, or leave python out"
    wrong = "cannot run /v/python: No such file"
    assert engines.complaints() == [f"t.toml:6: roles.a.python: {wrong}; {right}"]
    text = TEXT.replace('python = "/v/python"\n', "").replace(
        'model = "m"', 'model = "m"\npython = "/v/python"'
    )
    assert engines.complaints(text)[0].startswith("t.toml:4: python: cannot run")
    assert ("sim", "/v/python") in engines.asked, "a simulated engine runs there, too"
    assert len(engines.complaints(text)) == 1, "three roles, one mistake"


def test_a_parser_that_comes_to_grief_is_no_mistake_of_the_file(engines):
    assert engines.complaints() == []


# ---- what vLLM says ------------------------------------------------------------------------------


@pytest.fixture
def vllm(monkeypatch):
    """Stand in for vLLM's parser: it stops at the first thing that it doesn't like."""

    def parser(model, _served, options):
        if unknown := [each for each in options if each.startswith("x")]:
            words = " ".join(f"--{each} 1" for each in unknown)
            raise EngineConfigError(f"unrecognized arguments: {words}")
        if options.get("seed") == "x":
            raise EngineConfigError("argument --seed: invalid int value: 'x'")
        if "no-chunked" in options:
            raise EngineConfigError("argument --chunked/--no-chunked: not today")
        if model == "broken":
            raise EngineConfigError("the tokens don't add up")

    known = SimpleNamespace(parse=parser, known_flags=lambda: ["seed", "xylophone"])
    monkeypatch.setattr(workers.vllm, "arguments", known, raising=False)
    monkeypatch.setitem(sys.modules, "workers.vllm.arguments", known)


def said(**question) -> list[verdict.Objection]:
    return list(verdict.objections(verdict.Question(**({"model": "m"} | question))))


def test_three_mistakes_are_told_at_once(vllm):
    options = {"xylofone": 1, "xx": 1, "seed": "x", "no-chunked": True, "good": 1}
    assert said(model="broken", options=options) == [
        verdict.Objection("vLLM has no such flag", "xylofone", "xylophone"),
        verdict.Objection("vLLM has no such flag", "xx"),
        verdict.Objection("invalid int value: 'x'", "seed"),
        verdict.Objection("not today", "chunked"),
        verdict.Objection("the tokens don't add up"),
    ]


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        ({"hidden_size": 8}, True),
        ({"num_experts": 8}, False),
        ({"text_config": {"n_routed_experts": 64}}, False),
        ({"text_config": {"hidden_size": 8}}, True),
        ({"num_local_experts": 0}, True),
        ([], False),
    ],
)
def test_ranks_of_a_dense_model_are_objected_to(vllm, tmp_path, config, dense):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert [each.dense for each in said(model=str(tmp_path), ranks=2)] == [True] * dense
    assert said(model=str(tmp_path)) == []


def test_the_answer_goes_into_a_file(vllm, tmp_path, monkeypatch):
    monkeypatch.setenv(verdict.ANSWER_ENV, str(tmp_path / "answer"))
    question = verdict.Question(model="m", options={"seed": "x"})
    assert verdict.main(msgspec.json.encode(question)) == 0
    answer = (tmp_path / "answer").read_text()
    assert json.loads(answer) == [{"wrong": "invalid int value: 'x'", "flag": "seed"}]
