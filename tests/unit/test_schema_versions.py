"""What earlier versions left in the run directory is read by this one; see `golden/schema-N`.

A folder holds what a daemon of that schema had written: never edit one, add the next when a file's
shape changes. `boot` in them is another one's, so what was wanted is started anew.
"""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.core import adopt
from orchestrator.daemon import deployment
from orchestrator.host import records, shim
from orchestrator.wire import messages
from tests.unit.test_daemon_adoption import Heir

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = sorted(GOLDEN.glob("schema-*"))


@pytest.mark.parametrize("folder", SCHEMAS, ids=lambda folder: folder.name)
def test_statement_56_files_of_every_earlier_schema_load(short_path, stage, folder):
    heir = Heir(short_path, stage)
    run_dir = heir.stage.run_dir
    shutil.copy(folder / "agg.json", run_dir.topologies)
    states = sorted(folder.glob("agg~*.json"))
    for path in states:
        shutil.copy(path, run_dir.replicas)
    try:
        assert heir.adopt() == []
        units = {str(unit.id): unit for unit in heir.stage.supervisor.units.values()}
        assert set(units) == {path.stem.replace("~", "/") for path in states}
        for path in states:
            saved = json.loads(path.read_text())["state"]
            unit = units[saved["name"]]
            assert unit.state.want.value == ("down" if saved["phase"] == "completed" else "up")
            started = unit.state.phase.value in {"starting", "waiting"}
            assert started == (unit.state.want.value == "up"), unit.state
            assert unit.state.incarnation >= saved["incarnation"]
    finally:
        heir.stage.close()


@pytest.mark.parametrize("folder", SCHEMAS, ids=lambda folder: folder.name)
def test_a_shims_record_of_every_earlier_schema_loads(tmp_path, folder):
    shutil.copy(folder / "life.json", tmp_path)
    record = records.read_life(tmp_path)
    assert record.life == "agg/worker-0.0#1"
    assert record.main is not None


def test_present_numbers():
    """A number that grows needs a folder with what was written before."""
    assert {folder.name for folder in SCHEMAS} == {
        f"schema-{number}" for number in range(1, max(adopt.SCHEMA, deployment.SCHEMA))
    }
    assert shim.PROTOCOL == records.PROTOCOL
    assert messages.PROTOCOL in messages.PROTOCOLS
