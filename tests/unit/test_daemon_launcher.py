"""Orders to shims and zygotes: each answered by one event, whatever goes wrong."""

import asyncio
import os
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from msgspec import structs

from orchestrator.core import actions as a
from orchestrator.core import events as e
from orchestrator.daemon import launcher as module
from orchestrator.daemon.deployments import write_atomically
from orchestrator.daemon.launcher import Launcher
from orchestrator.daemon.port_desk import PortDesk
from orchestrator.host.port_table import NoPortError, PortTable
from orchestrator.host.zygote_link import ZygoteError
from orchestrator.wire import config, messages
from tests.unit.daemon_stage import AGG, CHAIN


class Zygote:
    """Births are confirmed by the test."""

    def __init__(self) -> None:
        self.asked = []

    def spawn(self, request):
        self.asked.append((request, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]


class Yard:
    """A launcher whose zygotes, shims and workers are made up."""

    def __init__(self, stage) -> None:
        self.stage = stage
        self.zygote = Zygote()
        self.profiles: list[str] = []
        self.posted: list = []
        self.told: list = []
        self.said: list = []
        self.forgotten: list[str] = []
        self.no_zygote: ZygoteError | None = None
        self.ports = PortTable(stage.run_dir.ports, write_atomically)
        self.moved: list[tuple] = []
        self.desk = PortDesk(self.ports, lambda *moved: self.moved.append(moved))
        self.launcher = Launcher(
            stage.run_dir, self.zygotes, None, self, self.post, ports=self.desk,
            on_said=lambda *said: self.said.append(said),
        )  # fmt: skip

    def zygotes(self, profile, python):
        self.profiles.append((profile, python))
        if self.no_zygote:
            raise self.no_zygote
        return self.zygote

    def order(self, life, message) -> None:
        self.told.append((str(life), message))

    def forget(self, life) -> None:
        self.forgotten.append(str(life))

    def post(self, replica, event) -> None:
        self.posted.append((str(replica), event))

    def perform(self, name, action):
        self.stage.call(self.launcher.perform, self.stage.unit(name), action)

    @property
    def request(self):
        return self.zygote.asked[-1][0]


@pytest.fixture
def yard(stage):
    stage.up(AGG)
    stage.up(CHAIN)
    return Yard(stage)


def test_an_engine_is_spawned_from_its_entry_with_its_config_as_blob(yard):
    yard.perform("agg/worker-0", a.Spawn(0, 1))
    request = yard.request
    assert request.life == "agg/worker-0.0#1"
    assert request.entry == "workers.sim.main:main"
    assert not request.argv
    worker = config.decode(request.blob)
    assert (worker.life, worker.kind, worker.model) == (request.life, "aggregated", "m")
    assert worker.plane == f"ipc://{request.directory}/p"
    assert request.env["TMPDIR"] == f"{request.directory}/t"
    assert yard.profiles == [("bare", "")]
    assert request.path == sys.path


@pytest.mark.parametrize(
    ("engine", "python", "profile"),
    [("vllm", None, ("vllm", "")), ("vllm", "/v/python", ("vllm", "/v/python")),
     ("sim", "/v/python", ("sim", "/v/python"))],
)  # fmt: skip
def test_each_engine_and_interpreter_has_its_zygote(yard, engine, python, profile):
    yard.launcher._environ["PYTHONPATH"] = "/ours"
    unit = yard.stage.unit("agg/worker-0")
    (planned,) = unit.spec.members
    planned = structs.replace(planned, engine=engine, python=python)
    unit.spec = replace(unit.spec, members=(planned,))
    yard.perform("agg/worker-0", a.Spawn(0, 1))
    assert yard.profiles == [profile]
    assert yard.request.path == ([] if python else sys.path), "nothing of our environment"
    assert ("PYTHONPATH" in yard.request.env) is (python is None)
    assert yard.request.env["PATH"].startswith("/v:") is (python is not None)


def test_a_gang_has_one_port_and_its_next_life_another(yard):
    yard.stage.up(AGG.replace('"agg"', '"dp"').replace("replicas = 2", "data-parallel = 2"))
    unit = yard.stage.unit("dp/worker-0")

    def born(incarnation):
        for member in range(2):
            yard.perform("dp/worker-0", a.Spawn(member, incarnation))
        return [config.decode(request.blob).gang for request, _ in yard.zygote.asked[-2:]]

    one, other = born(1)
    assert (one.member, other.member, one.size, one.host) == (0, 1, 2, "127.0.0.1")
    assert one.port == other.port
    assert unit.of(unit.id.life(1, 1)).ports == {"rendezvous": one.port}
    for _, answer in yard.zygote.asked:
        assert yard.ports.of("dp/worker-0#1") == one.port, "one of them may still live"
        answer.set_exception(ZygoteError("the zygote died"))
        yard.stage.turn()
    assert yard.ports.of("dp/worker-0#1") is None
    assert {gang.port for gang in born(2)} & {one.port, None} == set()


def test_a_worker_alone_meets_nobody(yard):
    yard.perform("agg/worker-0", a.Spawn(0, 1))
    assert config.decode(yard.request.blob).gang is None
    assert not (yard.stage.run_dir.ports).exists()


PAIR = """
name = "pd"
model = "m"
[frontend]
port = 8001
[roles.prefill]
kind = "prefill"
[roles.decode]
kind = "decode"
data-parallel = 2
[kv-transfer]
connector = "nixl"
lease = "90s"
"""


def test_a_worker_s_own_port_is_the_same_in_each_of_its_lives(yard):
    yard.stage.up(PAIR)

    def born(name, member, incarnation):
        yard.perform(name, a.Spawn(member, incarnation))
        request, answer = yard.zygote.asked[-1]
        answer.set_exception(ZygoteError("the zygote died"))
        yard.stage.turn()
        return config.decode(request.blob)

    first = born("pd/prefill-0", 0, 1)
    assert first.ports == {"side-channel": yard.ports.of("pd/prefill-0.0:side-channel")}
    assert first.options["kv-transfer"] == {"lease": 90.0, "on-failure": "recompute"}
    assert born("pd/prefill-0", 0, 2).ports == first.ports
    one, other = born("pd/decode-0", 0, 1), born("pd/decode-0", 1, 1)
    taken = {each.ports["side-channel"] for each in (first, one, other)}
    assert len(taken) == 3
    assert set(one.ports) == {"side-channel", "rendezvous"}
    assert one.gang.port == one.ports["rendezvous"]


def test_a_worker_whose_port_a_stranger_took_gets_another_and_an_event_says_so(yard):
    yard.stage.up(PAIR)
    unit = yard.stage.unit("pd/prefill-0")
    (planned,) = unit.spec.members
    port = yard.desk.assign(unit, unit.id.life(0, 1), planned)["side-channel"]
    with socket.create_server(("127.0.0.1", port)):
        other = yard.desk.assign(unit, unit.id.life(0, 2), planned)["side-channel"]
    ((life, reason, detail),) = yard.moved
    assert str(life) == "pd/prefill-0.0#2"
    assert reason.startswith(f"port {port} is in use by pid {os.getpid()} (")
    assert reason.endswith(f", which was this worker's side-channel; it is {other} from now on")
    assert detail == {"side-channel": str(other), "was": str(port)}


def test_the_ports_of_replicas_that_are_gone_rest(yard):
    yard.stage.up(PAIR)
    units = [yard.stage.unit(name) for name in ("pd/prefill-0", "pd/decode-0")]
    for unit in units:
        yard.perform(str(unit.id), a.Spawn(0, 1))
    desk = yard.desk
    own = {"pd/prefill-0.0:side-channel", "pd/decode-0.0:side-channel"}
    assert yard.ports.owners() == {*own, "pd/decode-0#1"}
    desk.keep([], units)
    assert yard.ports.owners() == own, "a life was missed"
    desk.keep([], units[:1])
    assert yard.ports.owners() == {"pd/prefill-0.0:side-channel"}, "a replica was missed"
    desk.forget(units[0].id)
    assert yard.ports.owners() == set()


def test_an_adopted_life_shows_its_ports_again(yard):
    yard.stage.up(PAIR)
    unit = yard.stage.unit("pd/decode-0")
    life = unit.life(1)
    given = yard.desk.assign(unit, life, unit.spec.members[1])
    unit.heard.clear()
    yard.desk.show(unit, life)
    assert unit.of(life).ports == given


def test_without_a_free_port_nobody_of_a_gang_is_born(yard, monkeypatch):
    def full(owner, count=1):
        raise NoPortError("no free port from 1 to 2")

    monkeypatch.setattr(yard.ports, "take", full)
    yard.stage.up(AGG.replace('"agg"', '"dp"').replace("replicas = 2", "data-parallel = 2"))
    yard.perform("dp/worker-0", a.Spawn(1, 1))
    ((_, event),) = yard.posted
    assert (event.member, event.text) == (1, "no free port from 1 to 2")
    assert yard.launcher.lives == {}


def test_a_command_is_spawned_as_it_stands_beside_its_topology_file(yard):
    yard.perform("chain/a-0", a.Spawn(0, 1))
    assert yard.request.argv == ["a"]
    assert not yard.request.entry
    assert yard.request.cwd == "/"


def test_the_same_birth_is_ordered_once(yard):
    yard.perform("chain/a-0", a.Spawn(0, 1))
    yard.perform("chain/a-0", a.Spawn(0, 1))
    assert len(yard.zygote.asked) == 1


def failed(yard, said):
    (((replica, event)),) = yard.posted
    assert replica == "chain/a-0"
    assert isinstance(event, e.SpawnFailed)
    assert (event.member, event.incarnation, event.code) == (0, 1, "")
    assert said in event.text
    assert yard.launcher.lives == {}


def test_a_birth_that_the_zygote_refuses_has_failed_and_leaves_nothing(yard):
    yard.perform("chain/a-0", a.Spawn(0, 1))
    yard.zygote.asked[0][1].set_exception(ZygoteError("the zygote died"))
    yard.stage.turn()
    failed(yard, "the zygote died")
    assert list(yard.stage.run_dir.lives.iterdir()) == []
    assert yard.forgotten == ["chain/a-0.0#1"]


def test_a_zygote_that_cannot_be_started_is_a_failed_birth(yard):
    yard.no_zygote = ZygoteError("cannot run python: No such file")
    yard.perform("chain/a-0", a.Spawn(0, 1))
    failed(yard, "cannot run python")
    assert list(yard.stage.run_dir.lives.iterdir()) == []


def test_rubble_in_the_way_is_a_failed_birth(yard):
    life = yard.stage.unit("chain/a-0").id.life(0, 1)
    yard.stage.run_dir.make_life(life)
    yard.perform("chain/a-0", a.Spawn(0, 1))
    failed(yard, "File exists")


def test_a_log_directory_that_cannot_be_made_is_a_failed_birth(yard):
    (yard.stage.state_dir.logs / "chain").write_text("in the way")
    yard.perform("chain/a-0", a.Spawn(0, 1))
    failed(yard, "exists")


def test_killing_what_was_never_born_finds_an_empty_tree(yard):
    yard.perform("chain/a-0", a.Kill(0, 1))
    ((_, event),) = yard.posted
    assert event == e.TreeEmptied(0, 1, e.ExitFacts(asked=True))


def test_stopping_what_is_gone_needs_no_answer(yard):
    yard.perform("chain/a-0", a.Stop(0, 1, 5.0, 1.0))
    assert yard.posted == []


@pytest.fixture
def given(monkeypatch):
    """What a shim was told, whoever it is."""
    told = []

    class Link:
        record = SimpleNamespace(protocol=1, log_from=0, main=None)

        @classmethod
        def connect(cls, directory, on_event):
            return cls()

        def limit_log(self, max_bytes, backups):
            told.append(("limit", max_bytes, backups))

        def stop(self, grace_s, linger_s):
            told.append(("stop", grace_s, linger_s))

        def kill(self):
            told.append(("kill",))

    monkeypatch.setattr(module, "ShimLink", Link)
    return told


def test_an_order_before_the_shim_answers_is_given_to_it(yard, given):
    yard.perform("chain/a-0", a.Spawn(0, 1))
    yard.perform("chain/a-0", a.Stop(0, 1, 5.0, 1.0))
    yard.perform("chain/a-0", a.Stop(0, 1, 3.0, 1.0))
    yard.perform("chain/a-0", a.Kill(0, 1))
    assert given == []
    yard.zygote.asked[0][1].set_result(77)
    yard.stage.turn()
    assert [event for _, event in yard.posted] == [e.Spawned(0, 1, 77)]
    assert given[-2:] == [("stop", 3.0, 1.0), ("kill",)]


def test_other_log_limits_that_come_while_a_life_is_born_reach_its_shim(yard, given):
    unit = yard.stage.unit("chain/a-0")
    yard.perform("chain/a-0", a.Spawn(0, 1))
    unit.spec = replace(unit.spec, log_max_bytes=4096, log_backups=9)
    yard.launcher.limit_logs(unit)
    yard.zygote.asked[0][1].set_result(77)
    yard.stage.turn()
    assert given == [("limit", 4096, 9)]


def test_a_drain_goes_over_the_control_socket(yard):
    yard.perform("agg/worker-0", a.Drain(0, 1, 30.0))
    assert yard.told == [("agg/worker-0.0#1", messages.Drain(30.0))]
