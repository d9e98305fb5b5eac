"""Ready means what the file says: asked over HTTP, TCP, by a command, by a line of log."""

import os
import signal
from pathlib import Path

from tests.e2e.conftest import alive, free_port
from tests.eventually import eventually

SERVER = """
import http.server, os, signal, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists("healthy") else 503)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
FOUR = """
name = "four"
start = { stop-grace = "1s" }
[processes.web]
command = ["python3", "-I", "server.py", "{web}"]
ready = { http = "http://127.0.0.1:{web}/", period = "200ms", misses = 2 }
[processes.tcp]
command = ["python3", "-I", "server.py", "{tcp}"]
ready = { tcp = "127.0.0.1:{tcp}" }
[processes.command]
command = ["sh", "-c", "echo $$ > $TMPDIR/pid; exec sleep infinity"]
env = { WORD = "swordfish" }
ready = { exec = ["sh", "-c", "test $WORD = swordfish && test -s $TMPDIR/pid"] }
[processes.log]
command = ["sh", "-c", "echo nothing yet; sleep 0.5; echo listening on port 7; exec sleep 9999"]
ready = { log = "listening on port \\\\d+" }
[processes.after]
command = ["sh", "-c", "echo begun; exec sleep infinity"]
depends-on = ["web", "log"]
"""


def prepare(dynorch, text: str = FOUR) -> Path:
    (dynorch.root / "server.py").write_text(SERVER)
    (dynorch.root / "healthy").touch()
    web, tcp = free_port(), free_port()
    return dynorch.file(text.replace("{web}", str(web)).replace("{tcp}", str(tcp)))


def reason(dynorch, role: str) -> str:
    return dynorch.replica(role)["reason"]


def test_four_ways_of_being_ready_and_one_that_waits_for_them(dynorch):
    file = prepare(dynorch)
    healthy = dynorch.root / "healthy"
    healthy.unlink()
    up = dynorch.popen("up", "-d", file)
    eventually(lambda: "answered 503" in dynorch.said(), within_s=30)
    eventually(lambda: dynorch.replica("log")["phase"] == "ready", within_s=30)
    assert dynorch.replica("after")["phase"] == "waiting"
    assert up.poll() is None
    healthy.touch()
    assert up.wait(30) == 0
    assert {
        dynorch.replica(role)["phase"] for role in ("web", "tcp", "command", "log", "after")
    } == {"ready"}

    # Unready is a fact about a ready process; whoever needs it isn't started meanwhile.
    healthy.unlink()
    eventually(lambda: "unready: http://127.0.0.1:" in reason(dynorch, "web"))
    assert dynorch.topology()["health"] == "degraded"
    os.kill(dynorch.pid("after"), signal.SIGKILL)
    eventually(lambda: dynorch.replica("after")["phase"] == "waiting")
    eventually(lambda: "to be ready: unready" in reason(dynorch, "after"))

    # The next daemon goes on asking.
    pid = dynorch.pid("web")
    dynorch.kill_daemon()
    healthy.touch()
    dynorch("up", "-d", file)
    assert dynorch.pid("web") == pid
    assert dynorch.topology()["health"] == "ready"
    healthy.unlink()
    eventually(lambda: "unready" in reason(dynorch, "web"))


def test_a_check_that_hangs_is_killed_with_all_that_it_forked(dynorch):
    text = """
name = "hang"
[processes.p]
command = ["sleep", "infinity"]
ready = { exec = ["sh", "-c", "setsid sleep 9999 & echo $! >> pids; wait"], timeout = "300ms" }
"""
    dynorch.popen("up", "-d", dynorch.file(text))
    eventually(lambda: "didn't end within 0.3 s and was killed" in dynorch.said(), within_s=30)
    pids = dynorch.root / "pids"
    dynorch("down")
    assert not any(map(alive, map(int, pids.read_text().split())))
    assert list((dynorch.run_dir / "probes").iterdir()) == []


def test_a_check_left_by_a_dead_daemon_is_ended_by_the_next(dynorch):
    text = """
name = "left"
[processes.p]
command = ["sleep", "infinity"]
ready = { exec = ["sh", "-c", "echo $$ >> pids; exec sleep 9999"], timeout = "1000s" }
"""
    file = dynorch.file(text)
    dynorch.popen("up", "-d", file)
    pids = dynorch.root / "pids"
    eventually(lambda: pids.exists() and pids.read_text().endswith("\n"), within_s=30)
    dynorch.kill_daemon()
    (first,) = map(int, pids.read_text().split())
    assert alive(first)
    dynorch.popen("up", "-d", file)
    eventually(lambda: not alive(first), within_s=30)


def test_a_process_that_does_not_answer_is_restarted(dynorch):
    text = """
name = "stuck"
[processes.web]
command = ["python3", "-I", "server.py", "{web}"]
ready = { http = "http://127.0.0.1:{web}/" }
live = { http = "http://127.0.0.1:{web}/", period = "200ms", timeout = "2s", misses = 1 }
restart = { backoff-initial = "100ms" }
"""
    dynorch("up", "-d", prepare(dynorch, text))
    pid = dynorch.pid("web")
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: not alive(pid), within_s=20)
    eventually(lambda: dynorch.replica("web")["phase"] == "ready", within_s=20)
    assert "failed its liveness probe once: http://127.0.0.1:" in reason(dynorch, "web")
    assert "no answer within 2 s" in reason(dynorch, "web")


def test_a_command_that_crashes_at_once_was_never_ready(dynorch):
    text = """
name = "quick"
restart = { backoff-initial = "10ms", backoff-max = "10ms" }
[processes.crash]
command = ["sh", "-c", "echo no luck today; exit 3"]
[processes.fine]
command = ["sleep", "infinity"]
"""
    done = dynorch("up", "-d", dynorch.file(text), code=1)
    assert "gave up after 3 failed starts" in (done.stdout + done.stderr).splitlines()[-1]
    assert dynorch.replica("fine")["phase"] in {"starting", "ready"}


def test_up_waits_for_a_oneshot_to_end_and_what_depends_on_it_starts_then(dynorch):
    text = """
name = "once"
[processes.once]
command = ["sh", "-c", "while ! test -e go; do sleep 0.02; done"]
oneshot = true
[processes.after]
command = ["sh", "-c", "echo $$ >> after; exec sleep infinity"]
depends-on = ["once"]
start = { settle = "0s" }
"""
    up = dynorch.popen("up", "-d", dynorch.file(text))
    eventually(lambda: "to be completed; it is starting" in dynorch.said(), within_s=30)
    assert up.poll() is None
    assert not (dynorch.root / "after").exists()
    (dynorch.root / "go").touch()
    assert up.wait(30) == 0
    assert dynorch.replica("once")["phase"] == "completed"
    (pid,) = map(int, (dynorch.root / "after").read_text().split())
    assert alive(pid)


def test_statement_36_a_command_that_is_not_there_holds_up_nobody(dynorch):
    text = """
name = "missing"
[processes.no]
command = ["no-such-command-anywhere"]
[processes.yes]
command = ["sleep", "infinity"]
"""
    done = dynorch("up", "-d", dynorch.file(text), code=1)
    assert "command not found: no-such-command-anywhere" in done.stdout + done.stderr
    eventually(lambda: dynorch.replica("yes")["phase"] == "ready")
    no = dynorch.replica("no")
    assert (no["phase"], no["cause"], no["incarnation"]) == ("failed", "config", 1)
    dynorch("restart", "missing/yes")
    assert dynorch.replica("yes")["incarnation"] == 2


def test_a_command_may_say_itself_that_it_is_ready_and_while_no_daemon_lives(dynorch):
    text = """
name = "says"
[processes.p]
command = ["python3", "-I", "-S", "says.py"]
ready = { notify = true }
watchdog = "100s"
start = { timeout = "1000s", timeout-max = "1000s" }
"""
    (dynorch.root / "says.py").write_text(
        "import os, signal, socket, time\n"
        "says = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        'says.connect(os.environ["NOTIFY_SOCKET"])\n'
        'says.send(b"STATUS=warming up")\n'
        'while not os.path.exists("go"): time.sleep(0.02)\n'
        'says.send(b"READY=1\\nSTATUS=usec " + os.environ["WATCHDOG_USEC"].encode())\n'
        'open("said", "w").close()\n'
        "signal.pause()\n"
    )
    file = dynorch.file(text)
    dynorch.popen("up", "-d", file)
    eventually(lambda: "warming up" in dynorch.said(), within_s=30)
    pid = dynorch.pid("p")
    dynorch.kill_daemon()
    (dynorch.root / "go").touch()
    eventually((dynorch.root / "said").exists)
    dynorch("up", "-d", file)
    found = dynorch.replica("p")
    assert (found["phase"], found["incarnation"]) == ("ready", 1)
    assert found["workers"][0]["pid"] == pid
    assert found["workers"][0]["progress"] == "usec 100000000"
    assert "usec 100000000" in dynorch("status").stdout
