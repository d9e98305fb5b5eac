"""What must be gone, and what must not stand in the way, when the next life or daemon begins."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.host import procfs
from tests.e2e.conftest import COMMAND, alive, zombie
from tests.e2e.machine import skip_unless_possible
from tests.e2e.test_stop import folder_of, noted, zoo
from tests.eventually import eventually


def one(dynorch, command: str, more: str = "") -> Path:
    return dynorch.file(f"""
name = "z"
restart = {{ backoff-initial = "10ms" }}
start = {{ settle = "0s" }}
{more}
[processes.zoo]
command = {command}
""")


def settled(folder: Path, count: int = 5) -> dict[str, int]:
    return noted(folder, count)


def private(dynorch) -> Path:
    """The life's own TMPDIR, where its zoo writes."""
    (life,) = (dynorch.run_dir / "lives").iterdir()
    return life / "t"


@pytest.mark.parametrize("tree", ["walk", "cgroup"])
def test_statement_02_the_next_life_sees_nobody_of_the_last(dynorch, tree):
    """The first thing that each life does is to look for the processes of the one before it."""
    skip_unless_possible(tree)
    folder, book = folder_of(dynorch, "zoo"), dynorch.root / "book"
    file = one(dynorch, zoo("witness", folder, book), f'tree = "{tree}"')
    dynorch("up", "-d", file)
    for round_ in range(1, 4):
        eventually(book.exists, within_s=30)
        seen = Path(f"{book}.seen").read_text().splitlines()
        assert seen == ["0 0", "5 0", "5 0"][:round_]
        os.kill(main_of(book), signal.SIGKILL)
        eventually(lambda n=round_: len(Path(f"{book}.seen").read_text().splitlines()) > n, 30)


def main_of(book: Path) -> int:
    return int(dict(map(str.split, book.read_text().splitlines()))["main"])


def test_statement_03_a_life_in_a_pid_namespace_is_gone_before_the_next(dynorch):
    skip_unless_possible("pidns")
    folder = folder_of(dynorch, "zoo")
    dynorch("up", "-d", one(dynorch, zoo("polite", folder), 'tree = "pidns"'))
    settled(folder)
    pid = dynorch.pid("zoo")
    space = Path(f"/proc/{pid}/ns/pid").readlink()
    assert space != Path("/proc/self/ns/pid").readlink()
    shim = procfs.stat(procfs.stat(pid).ppid).ppid
    old = [one.pid for one in procfs.descendants(shim) if one.alive]
    assert len(old) == 6  # a zoo of five and the first process
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: dynorch.replica("zoo")["incarnation"] == 2, within_s=30)
    assert all(zombie(pid) for pid in old)


def test_statement_07_daemon_and_shim_killed_together_make_no_second_copy(dynorch):
    folder = folder_of(dynorch, "zoo")
    file = one(dynorch, zoo("polite", folder))
    dynorch("up", "-d", file)
    old = settled(folder)
    shim = procfs.stat(old["main"]).ppid
    os.kill(shim, signal.SIGSTOP)
    dynorch.kill_daemon()
    os.kill(shim, signal.SIGKILL)
    (folder / "pids").unlink()
    dynorch("up", "-d", file)
    assert all(zombie(pid) for pid in old.values())
    new = settled(folder)
    replica = dynorch.replica("zoo")
    assert (replica["workers"][0]["pid"], replica["incarnation"]) == (new["main"], 2)
    dynorch("down", "--now")
    assert all(zombie(pid) for pid in new.values())


def test_statement_11_what_will_not_die_is_named_in_status_and_not_restarted(dynorch, freezer):
    folder = folder_of(dynorch, "zoo")
    stop = 'stop = { kill-timeout = "300ms" }'
    dynorch("up", "-d", one(dynorch, zoo("polite", folder), stop))
    pids = settled(folder)
    (freezer / "cgroup.procs").write_text(str(pids["session"]))
    (freezer / "freezer.state").write_text("FROZEN")
    os.kill(pids["main"], signal.SIGKILL)

    def named():
        replica = dynorch.replica("zoo")
        return replica["cause"] == "unkillable" and str(pids["session"]) in replica["reason"]

    eventually(named, within_s=30)
    replica = dynorch.replica("zoo")
    assert (replica["phase"], replica["incarnation"]) == ("stopping", 1)
    assert str(pids["session"]) in dynorch("status").stdout
    (freezer / "freezer.state").write_text("THAWED")
    eventually(lambda: dynorch.replica("zoo")["incarnation"] == 2, within_s=30)


def test_statement_57_what_a_power_loss_leaves_blocks_no_start(dynorch):
    """Dead sockets, a lock with another boot's pid, torn records of every kind."""
    file = one(dynorch, '["sleep", "1000"]')
    run = dynorch.run_dir
    for path in (
        run / "replicas" / "z~zoo-0.json", run / "topologies" / "z.json",
        run / "lives" / "abcdefghij" / "life.json", run / "zygotes" / "7.json",
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(b'{"torn')
    (run / "control.sock").touch()
    (run / "events.sock").touch()
    dead = {"boot_id": "another boot", "pid": os.getpid(), "starttime": 1}
    (run / "daemon.lock").write_text(json.dumps(dead))
    dynorch("up", "-d", file)
    assert dynorch.replica("zoo")["phase"] == "ready"


def test_statement_58_a_second_daemon_is_refused_and_told_who_is_there(dynorch):
    dynorch("up", "-d", one(dynorch, '["sleep", "1000"]'))
    pid = dynorch.daemon_pid()
    refused = dynorch("daemon", code=1, timeout=30)
    assert f"another daemon runs in {dynorch.run_dir}: pid {pid}" in refused.stderr
    assert dynorch.daemon_pid() == pid


def test_a_full_run_directory_loses_no_worker_to_the_next_daemon(dynorch):
    """What is told while the disk is full is written over what was there."""
    dynorch.run_dir.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(dynorch.run_dir)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED HERE: mounting a small file system isn't permitted; run as root")
    try:
        file = one(dynorch, '["sleep", "1000"]')
        dynorch("up", "-d", file)
        first = dynorch.pid("zoo")
        filler = (dynorch.run_dir / "filler").open("wb", buffering=0)
        with filler, pytest.raises(OSError, match="No space left"):
            fill(filler)
        dynorch.kill_daemon()
        dynorch("up", "-d", file)
        assert dynorch.pid("zoo") == first
        assert dynorch.replica("zoo")["incarnation"] == 1
        dynorch("down", "--now")
        assert zombie(first)
    finally:
        dynorch("down", "--now", code=None)
        subprocess.run(["umount", "-l", str(dynorch.run_dir)], check=True)


def fill(file) -> None:
    while True:
        file.write(b"x" * 4096)


def test_statement_13_as_process_1_it_reaps_strangers_and_goes_on(dynorch):
    skip_unless_possible("pidns")
    up = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *COMMAND, "daemon"],
        env=dynorch.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        (daemon,) = eventually(lambda: procfs.children(up.pid), within_s=20)
        eventually((dynorch.run_dir / "control.sock").exists, within_s=20)
        inside = ["nsenter", "--target", str(daemon), "--pid", "--mount"]
        for _ in range(3):
            subprocess.run([*inside, "sh", "-c", "(setsid sleep 0.1 &) &"], check=True)
        eventually(lambda: [p for p in procfs.descendants(daemon) if p.name == "sleep"] == [])
        assert not [p for p in procfs.descendants(daemon) if not p.alive]
        file = one(dynorch, '["sleep", "1000"]')
        for verb in (["up", "-d", file], ["status"], ["down"]):
            subprocess.run([*inside, *COMMAND, *verb], env=dynorch.env, check=True, timeout=60)
        assert alive(daemon)
        os.kill(daemon, signal.SIGTERM)
        assert up.wait(timeout=30) == 0
    finally:
        up.kill()
        up.wait()
        up.stderr.close()
