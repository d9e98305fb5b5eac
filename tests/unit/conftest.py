"""Fixtures that several unit tests share."""

import shutil
import tempfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrator.daemon import policies
from tests.unit.daemon_stage import Stage


@pytest.fixture
def short_path():
    """A directory with a short path: unix sockets want one."""
    folder = Path(tempfile.mkdtemp(prefix="dyn-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def born_is_ready(monkeypatch):
    """Let nothing settle where the file doesn't say so: most tests are about something else."""
    of_process = policies.of_process

    def at_once(process, **more):
        policy = of_process(process, **more)
        if "settle_s" in process.start.model_fields_set:
            return policy
        return replace(policy, start=replace(policy.start, settle_s=0.0))

    monkeypatch.setattr(policies, "of_process", at_once)


@pytest.fixture
def stage(short_path):
    one = Stage(short_path)
    yield one
    one.close()
