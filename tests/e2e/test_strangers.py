"""Whoever isn't us is refused, even where the file system would let him in."""

import os
import signal
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import zmq

from orchestrator.wire.sockets import bind_ipc, make_socket
from tests.e2e.machine import Machine, zoo
from tests.e2e.test_up_down import AGG

NOBODY = 65534
HELLO = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01NULL" + b"\0" * 49
"""The first 64 bytes of ZeroMQ's protocol, version 3.1."""

pytestmark = pytest.mark.skipif(
    os.getuid() != 0, reason="NOT TESTED HERE: only root can try it as somebody else"
)


def heard_as(uid: int, kind: int, path: Path, said: bytes) -> bytes:
    """Connect as this user, say something, and return the first that comes back."""
    answer, answer_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        heard = b"!"
        try:
            with socket.socket(socket.AF_UNIX, kind) as peer:
                peer.connect(str(path))
                peer.send(said)
                heard = peer.recv(4096)
        except ConnectionError:
            heard = b""
        finally:
            os.write(answer_end, heard)
            os._exit(0)
    os.close(answer_end)
    heard = b""
    while piece := os.read(answer, 4096):
        heard += piece
    os.close(answer)
    os.waitpid(pid, 0)
    return heard


def open_up(path: Path) -> None:
    """Take every obstacle away that isn't the check itself."""
    path.chmod(0o666)
    for folder in path.parents:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)


def test_statement_66_the_daemons_sockets_refuse_another_uid():
    with tempfile.TemporaryDirectory(prefix="dyn") as folder, zmq.Context() as context:
        path = Path(folder, "control.sock")
        router = make_socket(context, zmq.ROUTER)
        bind_ipc(router, f"ipc://{path}")
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert path.stat().st_mode & 0o777 == 0o600
        assert heard_as(NOBODY, socket.SOCK_STREAM, path, HELLO) == b"!"
        open_up(path)
        assert heard_as(NOBODY, socket.SOCK_STREAM, path, HELLO) == b""
        assert heard_as(os.getuid(), socket.SOCK_STREAM, path, HELLO).startswith(b"\xff")
        router.close()


def test_statement_66_a_daemons_directory_and_every_socket_in_it_are_its_own(dynorch):
    before = os.umask(0)  # nothing here is private by somebody else's care
    try:
        dynorch("up", "-d", dynorch.file(AGG))
    finally:
        os.umask(before)
    run_dir = dynorch.run_dir
    assert run_dir.stat().st_mode & 0o777 == 0o700
    modes = [stat.filemode(path.lstat().st_mode) for path in run_dir.rglob("*")]
    sockets = [mode for mode in modes if mode.startswith("s")]
    assert len(sockets) > 3
    assert set(sockets) == {"srw-------"}
    assert heard_as(NOBODY, socket.SOCK_STREAM, run_dir / "control.sock", HELLO) == b"!"
    open_up(run_dir / "control.sock")
    assert heard_as(NOBODY, socket.SOCK_STREAM, run_dir / "control.sock", HELLO) == b""


def test_statement_66_a_shims_socket_refuses_another_uid():
    machine = Machine()
    try:
        life = machine.born(argv=lambda folder: zoo("sleeper", folder))
        life.running()
        path = Path(life.spawn.directory, "s")
        open_up(path)
        assert heard_as(NOBODY, socket.SOCK_SEQPACKET, path, b'{"op": "kill"}') == b""
        assert b'"running"' in heard_as(0, socket.SOCK_SEQPACKET, path, b'{"op": "state"}')
    finally:
        machine.close()
