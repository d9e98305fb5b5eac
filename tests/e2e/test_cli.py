"""What the command line says: one clear last line, the right exit status, and nothing started for
what is refused. Every case here annoyed somebody who used it for the first time."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import COMMAND, alive
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
NOT_BUILT = ("doctor", "init", "engine")
TALK_LINES = 2000
LIVE = """
name = "live"
[processes.quiet]
command = ["sleep", "1000"]
[processes.other]
command = ["sleep", "1000"]
"""
BROKEN = """
name = "broken"
[processes.gone]
command = ["no-such-program"]
[processes.good]
command = ["sleep", "1000"]
"""
TALK = f"""
name = "talk"
[processes.talk]
command = ["sh", "-c", '''
i=0
while [ $i -lt {TALK_LINES} ]; do i=$((i+1)); echo "line $i of a log that is rotated often"; done
exec sleep 1000''']
log = {{ max-size = "16KiB", backups = 9 }}
"""


def last(text: str) -> str:
    return text.splitlines()[-1]


@pytest.fixture(scope="module")
def live(dynorch_factory):
    """A topology that is up, for tests that change nothing for each other."""
    one = dynorch_factory()
    one("up", "-d", one.file(LIVE))
    return one


def test_help_names_every_verb_and_what_is_not_built(dynorch):
    said = dynorch("--help").stdout
    assert said.startswith("Usage: dynorch [OPTIONS]")
    assert "3 no daemon" in said
    for verb in NOT_BUILT:
        assert f"{verb:8}  (not built yet)" in said
        assert dynorch(verb, "x", code=2).stderr == f"`dynorch {verb}` is not built yet\n"


def test_usage_errors_are_2(dynorch):
    assert "Did you mean 'status'" in dynorch("statsu", code=2).stderr
    assert "FILE" in dynorch("up", code=2).stderr
    assert "x>=0" in dynorch("logs", "-n", "-1", code=2).stderr


def test_without_a_daemon_each_verb_says_so(dynorch):
    for verb in ("restart", "start", "stop"):
        assert "no daemon runs" in last(dynorch(verb, "agg", code=3).stderr)
    assert "nothing is left to stop" in dynorch("down", code=3).stderr
    assert "no logs yet in" in dynorch("logs", code=1).stderr
    assert "needs a terminal" in dynorch("top", code=1).stderr
    assert dynorch("events").stdout == ""
    assert not dynorch.run_dir.exists()


@pytest.mark.parametrize("verb", [("up", "-d"), ("smoke",)])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_refused_starts_nothing(dynorch, verb, there):
    text = 'name = "t"\nmodel = "m"\nfrontend = { routing = "kv" }\n[roles.w]\n'
    refused = dynorch(*verb, dynorch.file(text) if there else "missing.toml", code=2)
    assert "nothing was started" in last(refused.stderr)
    assert "not built yet" in refused.stderr or "No such file" in refused.stderr
    assert refused.stdout == ""
    assert not dynorch.run_dir.exists()


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.toml")), ids=lambda p: p.stem)
def test_plans_of_the_shipped_topologies_are_stable_and_lack_nothing(dynorch, path):
    arguments = ("plan", path, "--gpus", "8xH100", "--json")
    one, other = dynorch(*arguments), dynorch(*arguments, PYTHONHASHSEED="7")
    assert one.stdout == other.stdout
    assert json.loads(one.stdout)["workers"]
    assert "not built yet" not in one.stderr


def test_the_machines_refusals_are_no_bugs(dynorch):
    assert dynorch("schema", "-o", "/nowhere/s.json", code=1).stderr == (
        "/nowhere/s.json: No such file or directory\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "schema"], env=dynorch.env, stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "No space left on device\n")


def test_a_closed_stdout_is_no_bug(dynorch):
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "status"]
    done = subprocess.run(closed, env=dynorch.env, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_failed_up_ends_with_the_reason_and_stays_to_be_looked_at(dynorch):
    file = dynorch.file(BROKEN)
    detached = dynorch("up", "-d", file, code=1)
    assert last(detached.stdout).startswith("broken failed: broken/gone-0: command not found")
    assert "`dynorch down broken` ends it" in detached.stdout
    eventually(lambda: dynorch.replica("good")["phase"] == "ready")
    dynorch("down")
    foreground = dynorch("up", file, code=1)
    assert last(foreground.stdout).startswith("broken failed: broken/gone-0: command not found")
    dynorch("status", code=3)


def test_smoke_ends_with_what_failed_and_keeps_the_logs(dynorch):
    failed = dynorch("smoke", dynorch.file(BROKEN), code=1, TMPDIR=str(dynorch.root))
    assert last(failed.stdout).startswith("smoke: FAILED: up ended with 1")
    (kept,) = dynorch.root.glob("dynorch-smoke-*")
    assert (kept / "state/journal.jsonl").exists()
    assert "curl" not in failed.stdout


def test_smoke_passes_in_a_long_temporary_directory_and_keeps_nothing(dynorch):
    deep = dynorch.root / ("d" * 60)
    deep.mkdir()
    passed = dynorch("smoke", dynorch.file(LIVE), TMPDIR=str(deep))
    assert last(passed.stdout).startswith("smoke: passed in")
    assert list(deep.iterdir()) == []
    assert "live/quiet-0" in passed.stdout


def test_a_part_is_reported_alone(live):
    said = live("restart", "live/quiet").stdout
    assert "live/other" not in said
    assert last(said) == "restart: live/quiet-0"


def test_wrong_names_are_answered_with_the_right_ones(live):
    assert "live/quiet-0" in live("restart", "live/quite", code=1).stderr
    assert "up are: live" in live("down", "life", code=1).stderr
    assert "`dynorch stop live/quiet`" in live("down", "live/quiet", code=2).stderr
    assert "vllm or sim" in live("up", "--engine", "slim", live.root / "t.toml", code=2).stderr


def test_other_settings_that_mean_the_same_change_nothing(live):
    said = live("up", "--dry-run", "--engine", "sim", live.root / "t.toml").stdout
    assert said == "live: nothing changes\n"


def test_logs_of_who_is_silent(live):
    quiet = live("logs", "live/quiet")
    assert quiet.stdout == ""
    assert "live/quite" in live("logs", "live/quite", code=1).stderr


def test_followed_logs_lose_nothing_to_rotation_and_end_with_their_reader(dynorch):
    dynorch("up", "-d", dynorch.file(TALK))
    done = f"line {TALK_LINES} "
    eventually(lambda: done in dynorch("logs", "-n", "1", "talk").stdout)
    follow = subprocess.Popen(
        [*COMMAND, "logs", "-f", "-n", "100", "talk/talk"], env=dynorch.env,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert follow.stdout.readline().startswith(f"line {TALK_LINES - 99} ")
    follow.stdout.close()
    dynorch("restart", "talk/talk")  # writes as much again, across rotations, into a closed pipe
    assert follow.wait(timeout=20) == 0


def test_a_dead_daemon_is_told_with_what_lives_on(dynorch):
    dynorch("up", "-d", dynorch.file(LIVE))
    pid = dynorch.pid("quiet")
    dynorch.kill_daemon()
    said = last(dynorch("restart", "live", code=3).stderr)
    assert said.startswith("daemon gone; 2 workers still run: `dynorch up FILE` takes over")
    assert alive(pid)
    assert "down, nothing left" in last(dynorch("down").stdout)
    assert not alive(pid)


def test_ctrl_c_of_a_smoke_leaves_nothing(dynorch):
    slow = 'name = "slow"\nmodel = "m"\n[frontend]\nport = {port}\n[roles.worker]\nengine = "sim"\n'
    file = dynorch.file(slow + 'sim = { startup = "60s" }\n')
    dynorch.env["TMPDIR"] = str(dynorch.root)
    smoke = dynorch.popen("smoke", file)
    eventually(lambda: "loading" in dynorch.said(), within_s=30)
    smoke.send_signal(signal.SIGINT)
    assert smoke.wait(timeout=30) == 130, dynorch.said()
    assert last(dynorch.said()).startswith("smoke: FAILED: interrupted")
    assert "slow: down, nothing left" in dynorch.said()


def test_top_of_a_terminal_that_goes_away_ends(live):
    """A closed window ends `top`, and touches nothing."""
    terminal, theirs = os.openpty()
    top = subprocess.Popen(
        [*COMMAND, "top"], env=live.env | {"TERM": "xterm"}, stdin=theirs, stdout=theirs,
        stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def shown():
        nonlocal seen
        seen += os.read(terminal, 65536)
        return b"quiet-0" in seen

    with contextlib.suppress(OSError):
        eventually(shown, within_s=20)
    assert b"quiet-0" in seen
    os.write(terminal, b"q")
    eventually(lambda: drained(terminal, top), within_s=20)
    assert live.replica("quiet")["phase"] == "ready"
    os.close(terminal)


def drained(terminal: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; its last words are read meanwhile, or it couldn't."""
    with contextlib.suppress(OSError):
        os.set_blocking(terminal, False)
        os.read(terminal, 65536)
    return process.poll() == 0


def test_statement_34_exit_on_failed_ends_with_3_and_says_why_in_one_line(dynorch):
    text = """
name = "strict"
restart = { backoff-initial = "10ms" }
[processes.good]
command = ["sleep", "infinity"]
[processes.bad]
command = ["sh", "-c", "seq 300; while ! test -e go; do sleep 0.02; done; exit 2"]
ready = { log = "300" }
restart = { policy = "never" }
"""
    refused = dynorch("up", "-d", "--exit-on-failed", dynorch.file(text), code=2)
    assert "it doesn't go with --exit-on-failed" in refused.stderr
    up = dynorch.popen("up", "--ci", dynorch.file(text))
    eventually(lambda: "strict is ready" in dynorch.said(), within_s=30)
    good = dynorch.pid("good")
    (dynorch.root / "go").touch()
    assert up.wait(30) == 3
    assert not alive(good)
    assert "exited with code 2" in last(dynorch.said())
    assert dynorch.status()["daemon"]["pid"] is None
    (line,) = (dynorch.state_dir / "failures.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["replica"], found["class"], found["exit_code"]) == ("strict/bad-0", "crash", 2)
    assert found["tail"] == [str(number) for number in range(101, 301)]
    assert found["signal"] is None
    assert found["gpu_memory"] is None


def test_exit_on_failed_does_not_wait_for_what_still_starts(dynorch):
    text = """
name = "strict"
[processes.slow]
command = ["sleep", "infinity"]
ready = { tcp = "127.0.0.1:1" }
start = { stop-grace = "1s" }
[processes.gone]
command = ["no-such-command-anywhere"]
"""
    done = dynorch("up", "--exit-on-failed", dynorch.file(text), code=3)
    assert "command not found" in last(done.stdout)
