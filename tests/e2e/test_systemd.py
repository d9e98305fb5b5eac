"""The daemon under a service manager: what it is told, from the start to the end."""

import os
import signal
import socket
from pathlib import Path

from tests.e2e.conftest import COMMAND
from tests.eventually import eventually

TEXT = """
name = "sys"
[processes.sleeper]
command = ["sleep", "100000"]
[processes.missing]
command = ["/no/such/program"]
"""


def test_a_service_manager_is_told_what_happens(dynorch, tmp_path):
    said = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "n"))
        ear.setblocking(False)

        def heard(word):
            while True:
                try:
                    said.extend(ear.recv(4096).decode().splitlines())
                except BlockingIOError:
                    return any(word in line for line in said)

        dynorch.env["NOTIFY_SOCKET"] = ear.getsockname()
        dynorch.env["WATCHDOG_USEC"] = "2000000"
        daemon = dynorch.popen("daemon")
        del dynorch.env["NOTIFY_SOCKET"]
        try:
            eventually(lambda: heard("READY=1"))
            eventually(lambda: heard("STATUS=nothing is up"))
            dynorch("up", "-d", dynorch.file(TEXT), code=1)
            eventually(lambda: heard("STATUS=sys "))
            eventually(lambda: heard("sys/missing-0: command not found"))
            eventually(lambda: heard("WATCHDOG=1"))
            pid = dynorch.replica("sleeper")["workers"][0]["pid"]
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()
            daemon.send_signal(signal.SIGTERM)
            eventually(lambda: heard("STOPPING=1"))
            assert daemon.wait(20) == 0
        finally:
            daemon.kill()
            daemon.wait()


def test_export_renders_a_unit_whose_command_is_ours(dynorch):
    unit = dynorch("export", "systemd", dynorch.file(TEXT)).stdout
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert start.removeprefix("ExecStart=").split()[1:] == [*COMMAND[1:], "daemon"]
    assert f"DYNORCH_RUN_DIR={dynorch.run_dir}" in unit
    assert os.fspath(dynorch.root / "t.toml") in unit
    wrong = dynorch("export", "launchd", dynorch.file(TEXT), code=2)
    assert "unknown format; there is only: systemd" in wrong.stderr
