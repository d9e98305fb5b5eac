"""What every test shares; and the proof, at the end of the suite, that nothing is left.

Everything that a test starts carries the session's mark in its environment. When the last test is
done, no process may carry it any more and /dev/shm may hold no name that wasn't there before. Where
the session itself is ended before that, `last_will` ends what it has started.
"""

import contextlib
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eventually import eventually

MARK = f"TEST_SESSION_OF_DYNORCH={secrets.token_hex(8)}"
"""Not DYNORCH_...: zygotes and workers are given no such variables of ours."""
LAST_WILL = Path(__file__).with_name("last_will.py")
SHM = Path("/dev/shm")
SHM_OURS = ("psm_", "sem.mp-", "dynorch", "vllm", "nccl-")


def marked() -> dict[int, str]:
    """Living processes of this test session, the test runner itself left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            environ = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state not in "ZX" and MARK.encode() in environ:
            found[int(entry.name)] = command[:120]
    return found


def shm_names() -> set[str]:
    """Names of the kinds we cause; what a living process still maps isn't left over."""
    names = {entry.name for entry in SHM.iterdir() if entry.name.startswith(SHM_OURS)}
    return {name for name in names if not mapped(name)} if names else names


def mapped(name: str) -> bool:
    for entry in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in entry.read_text():
                return True
    return False


@pytest.fixture(scope="session", autouse=True)
def nothing_left():
    name, _, value = MARK.partition("=")
    executor = [sys.executable, "-I", "-S", str(LAST_WILL), str(os.getpid()), MARK]
    subprocess.run(
        executor, env={}, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.environ[name] = value
    before = shm_names()
    yield

    def gone():
        assert not marked(), f"processes left: {marked()}"
        left = shm_names() - before
        assert not left, f"shared memory left: {left}"
        return True

    eventually(gone, within_s=15)
