"""Words, event lines, banners and plans: golden texts."""

import json
import shlex
from datetime import UTC

import msgspec
import pytest

from orchestrator.core.placement import Engine
from orchestrator.core.plan import Plan, PlannedWorker, masked_plan
from orchestrator.views import words
from orchestrator.views.banner import curl_line, trouble, up_banner
from orchestrator.views.event_line import event_brief, event_text
from orchestrator.views.ink import Span, cut, length, plain
from orchestrator.views.plan_text import plan_text
from orchestrator.wire.events import Event, decode, encode, encode_line
from orchestrator.wire.ids import ReplicaId
from tests.unit.made_up import DISAGG, FAILED, SNAPSHOT, agg, replica

EXITED = Event(
    seq=7,
    wall=1_700_000_000.5,
    subject="disagg/decode-1.0#3",
    what="worker-exited",
    phase="stopping",
    reason="killed by SIGKILL",
    detail={"status": "9", "line": "no luck"},
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"), (3.44, "3.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"),
        (125, "2 min 05 s"), (3600, "1 h 00 min"), (7512, "2 h 05 min"), (100_000, "1 d 3 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_ages_are_whole():
    assert [words.age(s) for s in (0.9, 59.9, 60, 3599, 3600)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h 00 min",
    ]  # fmt: skip


def test_cutting_says_that_something_is_missing():
    line = [Span("abc", "bad"), Span("defg")]
    assert plain(cut(line, 7)) == "abcdefg"
    assert plain(cut(line, 5)) == "abcd…"
    assert plain(cut(line, 3)) == "ab…"
    assert all(length(cut(line, width)) <= width for width in range(8))


def test_an_event_is_one_line():
    assert event_text(EXITED, zone=UTC) == (
        "22:13:20.500  disagg/decode-1.0#3     worker-exited   stopping: killed by SIGKILL"
        ' (line="no luck" status=9)'
    )
    assert event_text(EXITED, zone=UTC, date=True).startswith("2023-11-14 22:13:20.500  ")
    assert plain(event_brief(EXITED, zone=UTC)) == (
        "22:13:20 disagg/decode-1.0#3 worker-exited stopping: killed by SIGKILL"
    )
    up = Event(seq=1, wall=0, subject="agg/worker-0", what="phase-changed", phase="ready")
    ready = msgspec.structs.replace(up, reason="ready")
    assert event_text(ready, zone=UTC) == event_text(up, zone=UTC)
    verb = Event(seq=1, wall=0, subject="daemon", what="verb", reason="two\nlines")
    assert event_text(verb, zone=UTC).split("  ")[0] == "00:00:00.000"
    assert event_text(verb, zone=UTC).endswith("two lines")


def test_an_event_survives_both_encodings():
    assert decode(encode(EXITED)) == EXITED
    assert msgspec.json.decode(encode_line(EXITED), type=Event) == EXITED
    assert b"\n" not in encode_line(EXITED)


def test_the_curl_line_is_one_line_that_a_shell_understands():
    argv = shlex.split(curl_line(DISAGG))
    assert argv[:3] == ["curl", "-sS", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(argv[-1])["model"] == "Qwen/Qwen3-0.6B"
    assert "\n" not in curl_line(DISAGG)


def test_the_banner_is_loud_about_a_simulated_engine():
    text = [plain(line) for line in up_banner(SNAPSHOT, "disagg", foreground=True)]
    assert text[1].startswith("disagg is degraded: ")
    assert text[2] == "  SIMULATED ENGINE: no model runs, every answer is made up"
    assert "  logs      dynorch logs -f disagg  (/state/logs/disagg/)" in text
    assert "  stop      Ctrl-C, or `dynorch down disagg`" in text
    real = agg(replica("ready"), health="ready", engine="vllm", models=["m"])
    text = "\n".join(plain(line) for line in up_banner(real, "agg", foreground=False))
    assert "SIMULATED" not in text
    assert "  engine    vllm" in text
    assert "  stop      dynorch down agg" in text


def test_trouble_ends_with_the_reason():
    text = [plain(line) for line in trouble(DISAGG, ["Traceback:", "  boom\x07"])]
    assert text[0] == f"disagg/cache-0 failed: {FAILED.reason}"
    assert text[1].startswith("    to do: read its log")
    assert "    | boom" in text
    assert text[-1] == f"disagg degraded: {DISAGG.reason}"


PLAN = Plan(
    topology="agg",
    engines={"worker": Engine(name="vllm", reason="a GPU is present")},
    workers=(
        PlannedWorker(
            id="agg/frontend-0.0",
            replica=ReplicaId("agg", "frontend", 0),
            member=0,
            kind="frontend",
            entry="workers.frontend.main:main",
            env={"CUDA_VISIBLE_DEVICES": ""},
            ports={"http": 8000},
            options={"routing": "least-loaded"},
        ),
        PlannedWorker(
            id="agg/worker-0.0",
            replica=ReplicaId("agg", "worker", 0),
            member=0,
            kind="aggregated",
            engine="vllm",
            model="org/model",
            served_names=("org/model", "short"),
            entry="workers.vllm.main:main",
            argv=("vllm", "serve", "org/model", "--served-model-name", "a b"),
            env={"HF_TOKEN": "hush", "CUDA_VISIBLE_DEVICES": "GPU-1"},
            gpus=(0,),
            gpu_uuids=("GPU-1",),
            gpu_share=0.5,
            options={"served-model-name": ["a b"]},
        ),
    ),
)
PLANNED = """\
topology agg: 2 workers
engine of worker: vllm (a GPU is present)

agg/frontend-0.0  frontend
  gpus     none
  port     http 8000
  entry    workers.frontend.main:main
  option   routing = "least-loaded"
  env      CUDA_VISIBLE_DEVICES=

agg/worker-0.0  aggregated
  model    org/model as short
  engine   vllm
  gpus     0 (GPU-1), 0.5 of it
  entry    workers.vllm.main:main
  argv     vllm serve org/model --served-model-name 'a b'
  env      CUDA_VISIBLE_DEVICES=GPU-1
  env      HF_TOKEN='***'
"""


def test_a_plan_is_stable_text_without_secrets():
    assert plan_text(masked_plan(PLAN)) == PLANNED
