"""The status table, as text: what a person reads is what is compared."""

import subprocess
import sys

import msgspec

from orchestrator.views.ink import Pen, plain
from orchestrator.views.status_table import status_lines, status_text
from orchestrator.wire import snapshot as wire
from tests.unit.made_up import DAEMON, NO_DAEMON, SNAPSHOT, agg, replica, worker

GOLDEN = """\
dynorch 0.1.0: daemon pid 4711, up 2 h 05 min

disagg: degraded  http://127.0.0.1:8000  SIMULATED ENGINE  Qwen/Qwen3-0.6B
  disagg/cache-0: exited with status 1 within 0.2 s, 5 times in a row
  NAME               PHASE            FOR  LIFE  RESTARTS   PID  GPUS  KIND      IN FLIGHT  REQUESTS
  disagg/frontend-0  ready     2 h 05 min  #1           -  4800  -     frontend         12      2041
  disagg/prefill-0   ready          1 min  #2           1  4811  0     prefill           2       911
  disagg/decode-0    ready     2 h 04 min  #1           -     -  -     decode           10      1133
    .0               -                  -  #1           -  4820  1     decode            9      1130
    .1               -                  -  #1           -  4821  2     decode            1         3
  disagg/decode-1    waiting          2 s  #4           3     -  3     decode            -         -
      ran out of GPU memory while it loaded the model (next start in 3.4 s)
      seen: torch.OutOfMemoryError: CUDA out of memory.
      to do: lower gpu-memory-utilization, or give the role a whole GPU
  disagg/decode-2    starting         8 s  #1           -  5001  4     decode            -         -
      loading weights, 43 % (gives up starting in 4 min 51 s)
  disagg/cache-0     failed         5 min  #5           5     -  -     process           -         -
      exited with status 1 within 0.2 s, 5 times in a row
      to do: read its log, mend it, then `dynorch restart disagg/cache-0`
"""


def test_a_pipe_gets_the_whole_table_in_plain_text():
    text = status_text(SNAPSHOT)
    assert text == GOLDEN
    assert text.isascii()


def test_a_narrow_terminal_loses_columns_but_no_reason():
    for width in (40, 60, 80, 100, 200):
        lines = [plain(line) for line in status_lines(SNAPSHOT, Pen(width=width, symbols=True))]
        assert max(map(len, lines)) <= width
        words = " ".join(" ".join(lines).split())
        assert "lower gpu-memory-utilization, or give the role a whole GPU" in words
        assert "disagg/decode-1" in words


def test_colours_come_only_from_the_pen():
    assert "\x1b[" not in status_text(SNAPSHOT, Pen(width=80, symbols=True))
    coloured = status_text(SNAPSHOT, Pen(width=80, colour=True, symbols=True))
    assert "\x1b[1;31m✗ failed\x1b[0m" in coloured


def test_without_a_daemon_it_says_what_still_runs():
    lines = status_text(NO_DAEMON).splitlines()
    assert lines[0] == "daemon gone; 5 workers still run (run directory /run/dynorch)"
    assert lines[1].startswith("to do: `dynorch up FILE` takes them over")
    assert any("4811" in line for line in lines)
    nothing = wire.Snapshot(daemon=msgspec.structs.replace(DAEMON, pid=None))
    assert status_text(nothing) == (
        "no daemon runs, and nothing is left running (run directory /run/dynorch)\n"
    )


def test_a_daemon_with_nothing_up_says_how_to_begin():
    assert "dynorch up FILE" in status_text(wire.Snapshot(daemon=DAEMON))


def test_a_ready_replica_that_does_not_answer_is_explained():
    text = status_text(agg(replica("ready", routable=False), health="degraded"))
    assert "it doesn't answer at present" in text
    text = status_text(agg(replica("ready", routable=False, reason="its beats are missing")))
    assert "its beats are missing" in text


def test_progress_hides_no_crash():
    doing = [worker("agg/worker-0.0#2", pid=1, progress="loading weights")]
    first = replica("starting", cause="requested", reason="asked to start", workers=doing)
    assert "      loading weights\n" in status_text(agg(first))
    again = replica("starting", cause="crash", reason="killed by SIGKILL", workers=doing)
    assert "      loading weights; killed by SIGKILL\n" in status_text(agg(again))


def test_a_recovered_replica_remembers_and_asks_for_nothing():
    text = status_text(agg(replica("ready", reason="restarted: killed", advice="see its log")))
    assert "restarted: killed" in text
    assert "to do" not in text


def test_an_escape_sequence_in_a_reason_reaches_no_terminal():
    text = status_text(agg(replica("failed", reason="bad\x1b[2J\x1b]0;title\x07 luck\r\nnext")))
    assert "      bad luck next\n" in text
    assert "\x1b" not in text


def test_several_models_get_a_column():
    roles = [
        wire.RoleStatus(name=name, kind="aggregated", model=name, replicas=[replica("ready")])
        for name in ("small", "large")
    ]
    topology = wire.TopologyStatus(name="agg", health="ready", roles=roles)
    text = status_text(wire.Snapshot(daemon=DAEMON, topologies=[topology]))
    assert "MODEL" in text
    assert "small, large (no answer yet)" in text


def test_a_snapshot_survives_json():
    assert wire.decode(wire.encode(SNAPSHOT)) == SNAPSHOT
    assert len(SNAPSHOT.running()) == 5


def test_the_table_costs_neither_rich_nor_textual():
    code = (
        "import sys, orchestrator.views.status_table, orchestrator.views.progress\n"
        "sys.exit(bool({'rich', 'textual', 'asyncio', 'zmq'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
