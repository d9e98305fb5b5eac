"""Fixtures that several unit tests share."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.unit.daemon_stage import Stage


@pytest.fixture
def short_path():
    """A directory with a short path: unix sockets want one."""
    folder = Path(tempfile.mkdtemp(prefix="dyn-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stage(short_path):
    one = Stage(short_path)
    yield one
    one.close()
