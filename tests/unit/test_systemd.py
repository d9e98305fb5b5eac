"""What systemd is told, and the unit that it is given."""

import asyncio
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.daemon.systemd import Systemd
from orchestrator.views.systemd_unit import Service, quoted, render

SERVICE = Service(
    name="agg 100% $5",
    file=Path("/srv/my models/agg.toml"),
    dynorch=(sys.executable, "-m", "orchestrator.cli.main"),
    run_dir=Path("/run/dynorch"),
    state_dir=Path("/var/lib/dynorch"),
    stop_s=204.0,
    user="root",
)


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        yield ear


def test_systemd_hears_the_whole_life(manager):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "40000", "PATH": "/bin"}
    said = []

    async def life():
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def hear():
            said.append(manager.recv(4096).decode())
            news.set()

        loop.add_reader(manager, hear)
        systemd = Systemd(environ, lambda: "agg ready")
        assert environ == {"PATH": "/bin"}, "a worker must not find it"

        async def until(word, times=1):
            while sum(one.startswith(word) for one in said) < times:
                await news.wait()
                news.clear()

        systemd.ready()
        for _ in range(50):
            systemd.changed()
        await until("STATUS=agg ready")
        await until("WATCHDOG=1", 4)
        systemd.reloading()
        await until("RELOADING=1\nMONOTONIC_USEC=")
        systemd.stopping()
        await until("STOPPING=1")
        systemd.close()

    asyncio.run(asyncio.wait_for(life(), 20))
    assert said[0] == "READY=1"
    assert said.count("STATUS=agg ready") == 1


def test_without_systemd_nothing_is_armed_and_another_ones_watchdog_is_not_ours():
    async def life():
        systemd = Systemd({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}, lambda: "x")
        systemd.ready()
        systemd.changed()
        assert systemd._due is None
        assert systemd._alive is None

    asyncio.run(life())


def test_a_service_manager_that_is_gone_stops_nobody(tmp_path):
    async def life():
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, lambda: "x")
        systemd.ready()
        systemd.stopping()
        systemd.close()

    asyncio.run(life())


def test_words_are_written_as_systemd_reads_them():
    assert quoted("plain") == "plain"
    assert quoted("50% of $HOME") == '"50%% of $$HOME"'
    assert quoted('say "x"') == '"say \\"x\\""'


@pytest.mark.parametrize("for_user", [False, True])
def test_the_unit_passes_systemd_analyze_without_a_warning(tmp_path, for_user):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: nobody has checked the unit")
    unit = tmp_path / "dynorch-agg.service"
    unit.write_text(render(SERVICE, for_user=for_user))
    done = subprocess.run(
        [analyze, *(["--user"] if for_user else []), "verify", "--man=no", unit],
        capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
