"""What a new daemon makes of the files it finds; living shims are met in tests/e2e."""

import pytest

from orchestrator.core import events as e
from orchestrator.core.adopt import Alive, Nothing, Saved
from orchestrator.core.adopt import encode as encode_saved
from orchestrator.daemon.adoption import Adoption
from orchestrator.daemon.deployment import encode as encode_kept
from orchestrator.daemon.deployments import write_atomically
from orchestrator.host import procfs
from tests.unit.daemon_stage import AGG, CHAIN, Stage


class Launcher:
    """Finds nothing of any life, unless told otherwise."""

    def __init__(self) -> None:
        self.lives: dict = {}
        self.alive: set[str] = set()

    def adopt(self, _unit, life, _directory):
        return Alive(pid=7) if str(life) in self.alive else Nothing()

    def release_ports(self, units) -> None:
        """Nothing has any."""


class Looking(Adoption):
    """Finds what the launcher says, without a look into directories."""

    def _found(self, unit, life, here, ended):
        return self._launcher.adopt(unit, life, here)


class Heir:
    """The daemon after the one whose files lie there."""

    def __init__(self, folder, predecessor: Stage) -> None:
        self.stage = Stage(folder)
        self.launcher = Launcher()
        for name, found in predecessor.deployments.by_name.items():
            write_atomically(self.stage.run_dir.topology(name), encode_kept(found.kept))

    def save(self, unit, boot: str = "") -> None:
        saved = Saved(boot or procfs.boot_id(), unit.state)
        write_atomically(self.stage.run_dir.replica(unit.id), encode_saved(saved))

    def adopt(self) -> list[str]:
        adoption = Looking(
            self.stage.run_dir, self.stage.deployments, self.stage.supervisor, self.launcher, None
        )
        troubles = self.stage.loop.run_until_complete(adoption.run())
        self.stage.turn()
        return troubles


@pytest.fixture
def heir(short_path, stage):
    made = []

    def make():
        made.append(Heir(short_path, stage))
        return made[-1]

    yield make
    for one in made:
        one.stage.close()


def test_what_was_never_begun_is_started_beside_what_was(stage, heir):
    """The old daemon died between the first state it wrote and the last."""
    stage.up(AGG)
    new = heir()
    new.save(stage.unit("agg/frontend-0"))
    assert new.adopt() == []
    assert new.stage.phase("agg/worker-0") == "starting"
    assert new.stage.phase("agg/worker-1") == "starting"
    assert new.stage.unit("agg/frontend-0").state.incarnation >= 1


def halfway(stage, heir):
    """A stop of all three, of which the daemon has asked the first when it dies."""
    stage.up(CHAIN)
    for name in "abc":
        stage.born(stage.unit(f"chain/{name}-0"))
    stage.after(1.5)
    units = stage.deployments.units("chain")
    stage.call(stage.deployments.begin_stop, units, None)
    assert "".join(phase[0] for phase in stage.phases().values()) == "rrs"
    return heir()


def inherit(stage, new, boot: str = "") -> None:
    """The states as they are, and what lives."""
    for unit in stage.supervisor.units.values():
        new.save(unit, boot)
    new.launcher.alive = {stage.life(unit) for unit in stage.supervisor.units.values()}
    assert new.adopt() == []


def test_a_stop_in_order_goes_on_where_the_old_daemon_was(stage, heir):
    new = halfway(stage, heir)
    inherit(stage, new)
    for first, then in ("cb", "ba", "a-"):
        phases = {name[6]: phase for name, phase in new.stage.phases().items()}
        assert phases[first] == "stopping"
        assert phases.get(then, "ready") == "ready"
        new.stage.empty(new.stage.unit(f"chain/{first}-0"))
    assert set(new.stage.phases().values()) == {"stopped"}
    found = new.stage.deployments.by_name["chain"]
    assert (found.stopping, found.kept.stopping) == ({}, {})
    assert b'"stopping":{}' in new.stage.run_dir.topology("chain").read_bytes()


def test_who_was_started_after_the_stop_began_is_not_stopped_by_the_next_daemon(stage, heir):
    new = halfway(stage, heir)
    stage.call(stage.supervisor.request, stage.unit("chain/a-0"), e.StartRequested)
    inherit(stage, new)
    for name in "cb":
        new.stage.empty(new.stage.unit(f"chain/{name}-0"))
    assert new.stage.phases() == {
        "chain/a-0": "ready", "chain/b-0": "stopped", "chain/c-0": "stopped",
    }  # fmt: skip


def test_after_a_reboot_too_all_of_them_are_stopped(stage, heir):
    new = halfway(stage, heir)
    inherit(stage, new, "another boot")
    assert set(new.stage.phases().values()) <= {"stopping", "stopped"}


def test_what_was_stopped_by_hand_stays_so(stage, heir):
    stage.up(CHAIN)
    new = heir()
    for unit in stage.supervisor.units.values():
        unit.state = type(unit.state)(name=str(unit.id), intent=3)
        new.save(unit)
    new.adopt()
    assert set(new.stage.phases().values()) == {"stopped"}
    assert new.stage.ordered() == []


def test_a_start_that_was_interrupted_begins_again(stage, heir):
    stage.up(CHAIN)
    new = heir()
    for unit in stage.supervisor.units.values():
        new.save(unit)
    new.adopt()
    assert new.stage.ordered() == ["chain/a-0"]
    assert new.stage.unit("chain/a-0").state.incarnation == 2
    assert new.stage.phase("chain/b-0") == "waiting"


def test_nobody_starts_on_what_only_used_to_be_true(stage, heir):
    """`a` was ready and has gone with the old daemon; `b` was just about to start on it."""
    stage.up(CHAIN)
    waiting = stage.unit("chain/b-0").state
    stage.born(stage.unit("chain/a-0"))
    stage.unit("chain/b-0").state = waiting
    new = heir()
    for unit in stage.supervisor.units.values():
        new.save(unit)
    new.adopt()
    assert new.stage.phase("chain/a-0") in {"waiting", "starting"}
    assert new.stage.phase("chain/b-0") == "waiting"
    assert "chain/b-0" not in new.stage.ordered()


def test_after_a_reboot_what_was_wanted_is_started(stage, heir):
    stage.serve(CHAIN)
    new = heir()
    for unit in stage.supervisor.units.values():
        new.save(unit, boot="another")
    new.adopt()
    assert new.stage.ordered() == ["chain/a-0"]
    assert new.stage.unit("chain/a-0").state.incarnation == 2


def test_a_topology_on_its_way_down_goes_on_down(stage, heir):
    found = stage.serve(CHAIN)
    stage.call(stage.deployments.begin_down, found, at_once=False)
    new = heir()
    for unit in stage.supervisor.units.values():
        new.save(unit)
    new.adopt()
    assert new.stage.gone == 1
    assert new.stage.ordered() == []
    assert not new.stage.run_dir.topology("chain").exists()


@pytest.mark.parametrize("data", [b"{", b'{"file": 1}', b""])
def test_a_topology_that_cannot_be_read_is_named_once_and_given_up(stage, heir, data):
    stage.up(CHAIN)
    new = heir()
    new.stage.run_dir.topology("other").write_bytes(data)
    (trouble,) = new.adopt()
    assert trouble.startswith("other.json makes no sense")
    assert list(new.stage.deployments.by_name) == ["chain"]
    assert not new.stage.run_dir.topology("other").exists()


def test_a_topology_that_a_later_version_refuses_is_given_up_with_the_reason(stage, heir):
    found = stage.up(CHAIN)
    new = heir()
    kept = type(found.kept)(
        file="/t.toml", text="name = 3", variables={}, engine="sim", inventory=found.kept.inventory
    )
    write_atomically(new.stage.run_dir.topology("odd"), encode_kept(kept))
    (trouble,) = new.adopt()
    assert "odd.json makes no sense" in trouble
    assert "/t.toml:1: name" in trouble


@pytest.mark.parametrize("data", [b"", b"{}", b'{"boot": "x", "state": {"name": 1}}'])
def test_a_state_that_cannot_be_read_begins_anew(stage, heir, data):
    stage.up(CHAIN)
    new = heir()
    for unit in stage.supervisor.units.values():
        new.stage.run_dir.replica(unit.id).write_bytes(data)
    assert new.adopt() == []
    assert new.stage.ordered() == ["chain/a-0"]


def test_with_nothing_there_is_nothing_to_do(stage, heir):
    assert heir().adopt() == []
