"""`dynorch smoke`: the whole way once, for CI.

It runs in a run directory of its own, so it neither sees nor disturbs a daemon that is up. What it
proves is what a user would see: real requests over HTTP are answered, and afterwards no process,
no shared memory and no port of it are left.
"""

import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli import lifecycle
from orchestrator.cli.dirs import dirs
from orchestrator.cli.files import engine_choice, read
from orchestrator.cli.follow import sigterm_interrupts
from orchestrator.cli.look import snapshot
from orchestrator.cli.main import INTERRUPTED
from orchestrator.daemon.client import daemon_pid
from orchestrator.host import procfs
from orchestrator.host.ports import trouble_with
from orchestrator.wire.snapshot import Snapshot, TopologyStatus

REQUEST_S = 120.0
GONE_S = 5.0
STOPPED = "interrupted"
SHORT = Path("/tmp")  # noqa: S108  a CI's temporary directory may be too deep for sockets
SHM = Path("/dev/shm")  # noqa: S108  only looked at


class SmokeError(Exception):
    """A step that didn't hold; the text says what was seen."""


def smoke(file: Path, engine: str) -> int:
    """Up, requests, down, nothing left. The exit status tells."""
    read(file, engine=engine_choice(engine))
    begun = time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="dynorch-smoke-"))
    run = Path(tempfile.mkdtemp(prefix="dynorch-", dir=SHORT))
    os.environ["DYNORCH_RUN_DIR"], os.environ["DYNORCH_STATE_DIR"] = str(run), f"{root}/state"
    shm = _shm_names()
    with sigterm_interrupts():
        wrong = _steps(file, engine, shm)
    if not dirs().living():  # else the next daemon needs it
        shutil.rmtree(run, ignore_errors=True)
    if wrong:
        print(f"smoke: logs and journal are kept in {root}/state")
        print(f"smoke: FAILED: {wrong}")
        return INTERRUPTED if STOPPED in wrong else 1
    shutil.rmtree(root, ignore_errors=True)
    print(f"smoke: passed in {time.monotonic() - begun:.1f} s")
    return 0


def _steps(file: Path, engine: str, shm: set[str]) -> str:
    """Go all the way; what went wrong, in one line, empty if nothing did."""
    found: list[Snapshot] = []
    wrong: list[str] = []
    try:
        _step("up", lambda: _up(file, engine))
        found.append(snapshot(dirs()))
        for topology in found[0].topologies:
            for model in topology.models:
                _step(f"{model}: answers", partial(_answers, topology, model))
                _step(f"{model}: streams", partial(_streams, topology, model))
    except (SmokeError, OSError, KeyboardInterrupt) as error:
        wrong.append(str(error) or STOPPED)
    here = dirs()
    try:
        if found or daemon_pid(here.run) is not None or here.living():
            _step("down", _down)
        if found:
            _step("nothing left", lambda: _nothing_left(found[0], shm))
    except (SmokeError, OSError, KeyboardInterrupt) as error:
        wrong.append(str(error) or STOPPED)
    return "; then ".join(wrong)


def _step(name: str, act: Callable[[], str]) -> None:
    begun = time.monotonic()
    said = act()
    print(f"smoke: ok {name} ({time.monotonic() - begun:.1f} s){': ' + said if said else ''}")


def _up(file: Path, engine: str) -> str:
    try:
        code = lifecycle.up(file, engine, detach=True, banner=False, ci=True)
    except typer.Exit as refused:
        code = refused.exit_code
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SmokeError(f"up ended with {code}, see above")
    return ""


def _down() -> str:
    try:
        code = lifecycle.down(None, now=False)
    except typer.Exit as refused:
        code = refused.exit_code
    if code:
        raise SmokeError(f"down ended with {code}, see above")
    return ""


def _post(topology: TopologyStatus, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(  # noqa: S310  the endpoint is ours
        f"{topology.endpoint}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:  # noqa: S310
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        raise SmokeError(f"{error.code}: {error.read().decode(errors='replace')}") from error


def _answers(topology: TopologyStatus, model: str) -> str:
    body = {"model": model, "prompt": "Say hello.", "max_tokens": 8}
    usage = json.loads(_post(topology, body))["usage"]
    if usage["completion_tokens"] < 1:
        raise SmokeError(f"no token came back: {usage}")
    return f"{usage['completion_tokens']} tokens"


def _streams(topology: TopologyStatus, model: str) -> str:
    body = {"model": model, "prompt": "Say hello.", "max_tokens": 8, "stream": True}
    lines = [line for line in _post(topology, body).split(b"\n\n") if line]
    if not lines or lines[-1] != b"data: [DONE]" or any(b'"error"' in line for line in lines):
        raise SmokeError(f"the stream ended wrongly: {lines[-1:]!r}")
    return f"{len(lines)} events"


def _nothing_left(before: Snapshot, shm: set[str]) -> str:
    deadline = time.monotonic() + GONE_S
    while left := _left(before, shm):
        if time.monotonic() > deadline:
            raise SmokeError(f"left over: {', '.join(left)}")
    return f"{len(before.running())} processes, ports and shared memory are gone"


def _left(before: Snapshot, shm: set[str]) -> list[str]:
    pids = [worker.pid for worker in before.running()] + [before.daemon.pid]
    left = [f"pid {pid}" for pid in pids if pid is not None and _alive(pid)]
    left += [str(SHM / name) for name in _shm_names() - shm]
    for topology in before.topologies:
        if topology.endpoint:
            host, _, port = topology.endpoint.removeprefix("http://").rpartition(":")
            taken = trouble_with(int(port), host)
            left += [taken] if taken else []
    return left


def _shm_names() -> set[str]:
    return {entry.name for entry in SHM.iterdir()}


def _alive(pid: int) -> bool:
    stat = procfs.stat(pid)
    return stat is not None and stat.alive
