"""The command line's own part: exit statuses, what a file's verbs print, a look without daemon."""

import io
import json
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
import typer

from orchestrator.cli import files, lifecycle, look, main
from orchestrator.cli.dirs import Dirs
from orchestrator.core.worker_env import is_secret_flag, masked_argv
from orchestrator.daemon import client
from orchestrator.daemon.absence import DaemonNotStartedError, DaemonSilentError, NoDaemonError
from orchestrator.daemon.publisher import Record
from orchestrator.host.journal import Journal
from orchestrator.host.records import LifeRecord, Process
from orchestrator.host.rundir import FoundLife
from orchestrator.wire.events import Event
from orchestrator.wire.ids import LifeId
from orchestrator.wire.messages import Reply

SECRETS = """
name = "t"
model = "m"
[roles.worker]
kind = "aggregated"
env = { HF_TOKEN = "hush-1", PLAIN = "seen-1" }
vllm = { hf-token = "hush-2", max-num-batched-tokens = 8192 }
[processes.p]
command = ["serve", "--api-key", "hush-3", "--password=hush-4", "seen-2"]
env = { MY_SECRET = "hush-5" }
"""


# ---- how errors end ------------------------------------------------------------------------------


def status_of(monkeypatch, error) -> int:
    def raises(**_):
        raise error

    monkeypatch.setattr(main, "app", raises)
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (KeyboardInterrupt(), 130, ""),
        (NoDaemonError(), 3, "no daemon runs"),
        (DaemonSilentError("it says nothing"), 1, "it says nothing"),
        (DaemonNotStartedError("no room"), 1, "no room"),
        (ValueError("odd"), 1, "ValueError: odd (a bug in dynorch; DYNORCH_DEBUG=1 shows more)"),
    ],
)
def test_each_way_to_fail_has_its_status_and_its_last_line(
    monkeypatch, capsys, tmp_path, error, code, last
):
    monkeypatch.setenv("DYNORCH_RUN_DIR", str(tmp_path / "run"))  # what is left is told, too
    assert status_of(monkeypatch, error) == code
    assert capsys.readouterr().err.strip().startswith(last)


def run(monkeypatch, *argv) -> int:
    monkeypatch.setattr(sys, "argv", ["dynorch", *argv])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code or 0


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--version"], 0),
        (["frobnicate"], 2),
        (["up"], 2),
        (["plan", "x.toml", "--engine"], 2),
        (["scale", "agg/worker", "3"], 2),
        (["validate", "/nowhere.toml"], 2),
        (["logs", "-n", "-1"], 2),
    ],
)
def test_usage(monkeypatch, capsys, argv, code):
    assert run(monkeypatch, *argv) == code
    assert capsys.readouterr()


def test_ctrl_c_in_a_verb_is_130(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "status", interrupted)
    assert run(monkeypatch, "status") == 130


def test_without_a_daemon_a_look_is_3_and_starts_none(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DYNORCH_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("DYNORCH_STATE_DIR", str(tmp_path / "state"))
    assert run(monkeypatch, "status", "--json") == 3
    assert json.loads(capsys.readouterr().out)["daemon"]["pid"] is None
    assert run(monkeypatch, "down") == 3
    assert run(monkeypatch, "restart", "agg") == 3
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "told"),
    [(("up", "--ci"), 120.0), (("smoke",), 120.0), (("up", "--exit-on-failed"), None)],
)
def test_a_build_tells_the_daemon_how_long_a_gpu_is_worth_waiting_for(
    monkeypatch, capsys, short_path, verb, told
):
    asked = {}

    def refuse(_client, _run, _state, verb, **arguments):
        asked[verb] = arguments.get("gpu_timeout_s")
        return Reply(code=1, text="no")

    monkeypatch.setenv("DYNORCH_RUN_DIR", str(short_path / "run"))
    monkeypatch.setenv("DYNORCH_STATE_DIR", str(short_path / "state"))
    monkeypatch.setattr(lifecycle, "call_or_start", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))  # a smoke that fails keeps its logs
    file = short_path / "t.toml"
    file.write_text('name = "t"\n[processes.p]\ncommand = ["true"]\n')
    assert run(monkeypatch, *verb, str(file)) == 1
    assert asked == {"up": told}


def test_every_option_is_written_in_small_letters():
    for verb in typer.main.get_command(main.app).commands.values():
        for option in verb.params:
            for name in option.opts:
                assert name == name.lower() or option.param_type_name == "argument", name


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False])
def test_a_plan_shows_no_secret_wherever_it_stands(tmp_path, capsys, as_json):
    path = tmp_path / "t.toml"
    path.write_text(SECRETS)
    assert files.plan(path, "vllm", "1xH100", as_json=as_json) == 0
    out = capsys.readouterr().out
    assert "hush" not in out
    assert out.count("***") >= 4
    for seen in ("seen-1", "seen-2", "8192"):
        assert seen in out
    if as_json:
        worker = next(one for one in json.loads(out)["workers"] if one["engine"])
        assert worker["env"]["HF_TOKEN"] == "***"
        assert worker["options"]["hf-token"] == "***"


@pytest.mark.parametrize(
    ("flag", "secret"),
    [
        ("hf-token", True),
        ("--api-key", True),
        ("api_key", True),
        ("TOKEN", True),
        ("--password", True),
        ("max-num-batched-tokens", False),
        ("tokenizer", False),
        ("--tokenizer-mode", False),
        ("monkey", False),
        ("key-length", False),
    ],
)
def test_flags_that_are_secret(flag, secret):
    assert is_secret_flag(flag) is secret


def test_argv_is_masked_word_by_word():
    argv = ["x", "--token", "a", "--token=b", "-v", "token", "c", "--key"]
    assert masked_argv(argv) == ("x", "--token", "***", "--token=***", "-v", "token", "c", "--key")


def test_only_named_variables_leave_for_the_daemon(monkeypatch):
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "2")
    assert files.variables_of('x = "${A}"\ny = "${NOT_SET_HERE:-3}"') == {"A": "1"}


def test_an_engine_that_is_none_is_refused(capsys):
    with pytest.raises(typer.Exit) as refused:
        files.engine_choice("magic")
    assert refused.value.exit_code == 2


# ---- looking without a daemon --------------------------------------------------------------------


def found(name: str, pid: int | None) -> FoundLife:
    life = LifeId.parse(name)
    record = LifeRecord(
        life=name, tag="t", boot_id="b", shim=Process(pid=1, starttime=1),
        main=Process(pid=pid, starttime=1) if pid else None,
        log=f"/logs/{life.worker}.log", started_at=1.0, started_wall=1.0,
    )  # fmt: skip
    return FoundLife(life, Path("/x"), record, True, None)


@pytest.fixture
def living(monkeypatch):
    lives: list[FoundLife] = []
    monkeypatch.setattr(Dirs, "living", lambda _: lives)
    return lives


def test_what_remains_is_grouped_into_replicas_and_gangs(living, tmp_path):
    living += [
        found("dep/decode-0.1#3", 7),
        found("agg/frontend-0.0#1", 7),
        found("dep/decode-0.0#3", 7),
        found("dep/decode-1.0#2", None),
    ]
    snapshot = Dirs(tmp_path, tmp_path).remains()
    assert snapshot.daemon.pid is None
    assert [topology.name for topology in snapshot.topologies] == ["agg", "dep"]
    decode = snapshot.topologies[1].roles[0]
    assert [replica.index for replica in decode.replicas] == [0, 1]
    gang = decode.replicas[0]
    assert (gang.incarnation, [worker.id for worker in gang.workers]) == (
        3,
        ["dep/decode-0.0#3", "dep/decode-0.1#3"],
    )
    assert decode.replicas[1].workers[0].pid is None
    assert snapshot.topologies[0].health == "unsupervised"


def test_leftovers_are_those_of_the_topologies_asked_for(living, tmp_path):
    living += [found("a/x-0.0#1", None), found("b/x-0.0#1", None)]
    here = Dirs(tmp_path, tmp_path)
    assert here.leftovers(["a"]) == ["a/x-0.0#1 (pid ?)"]
    assert here.leftovers([]) == []
    assert len(here.leftovers()) == 2


# ---- events --------------------------------------------------------------------------------------


def line(seq: int) -> bytes:
    event = Event(seq=seq, wall=0.0, subject="a", what=f"event-{seq}")
    return msgspec.json.encode(Record(e=event))


def test_events_are_followed_without_a_gap_or_a_repetition(monkeypatch, tmp_path):
    journal = Journal(tmp_path / "state/journal.jsonl", 2048)
    for seq in range(1, 4):
        journal.append(line(seq))
    monkeypatch.setenv("DYNORCH_STATE_DIR", str(tmp_path / "state"))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    looks = []

    def pause():
        looks.append(1)
        if len(looks) > 3:
            raise KeyboardInterrupt
        for seq in range(4 + 2 * len(looks), 6 + 2 * len(looks)):
            journal.append(line(seq))
        if len(looks) == 1:
            journal.append(b'{"e":{"seq":')  # torn: nobody is told of it

    monkeypatch.setattr(look.files, "pause", pause)
    with pytest.raises(KeyboardInterrupt):
        look.events(follow=True, lines=2, as_json=True)
    journal.close()
    assert [json.loads(text)["seq"] for text in out.getvalue().splitlines()] == [
        2, 3, 6, 7, 8, 9, 10, 11,
    ]  # fmt: skip


# ---- the way to the daemon -----------------------------------------------------------------------


class Caller:
    """A client whose daemon comes and goes as a test says."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    def call(self, name, **_):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_daemon_that_somebody_else_has_just_started_is_asked(monkeypatch, tmp_path):
    def held(*_):
        raise DaemonNotStartedError("another daemon runs")

    monkeypatch.setattr(client, "spawn_daemon", held)
    monkeypatch.setattr(client, "daemon_pid", lambda _: 7)
    asked = client.call_or_start(Caller(NoDaemonError(), "yes"), tmp_path, tmp_path, "up")
    assert asked == "yes"
    monkeypatch.setattr(client, "daemon_pid", lambda _: None)
    with pytest.raises(DaemonNotStartedError):
        client.call_or_start(Caller(NoDaemonError()), tmp_path, tmp_path, "up")
