"""`dynorch daemon --replace`: a daemon of this version takes over from the one that runs."""

from orchestrator.cli.dirs import dirs
from orchestrator.cli.look import snapshot
from orchestrator.cli.main import NO_DAEMON, fail
from orchestrator.daemon.client import daemon_pid, spawn_daemon


def replace() -> int:
    """Replace the daemon; its workers keep their pids. The old one stays if the new can't start."""
    here = dirs()
    old = daemon_pid(here.run)
    if old is None:
        fail(here.absence(), NO_DAEMON)
    before = {worker.pid for worker in snapshot(here).running()}
    spawn_daemon(here.run, here.state, "--take-over")
    found = snapshot(here)
    kept = sum(1 for worker in found.running() if worker.pid in before)
    many = "worker goes" if kept == 1 else "workers go"
    print(f"daemon {old} replaced by {found.daemon.pid} ({found.daemon.version}); {kept} {many} on")
    return 0
