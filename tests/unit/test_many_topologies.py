"""A hundred topologies that come up at the same time: no GPU and no port is in two hands."""

import asyncio
from collections import Counter

import pytest

from orchestrator.core.declared import declared
from orchestrator.daemon import changes
from orchestrator.daemon.deployments import write_atomically
from orchestrator.daemon.port_desk import PortDesk
from orchestrator.host.port_table import PortTable
from orchestrator.wire.messages import Verb
from tests.unit.test_daemon_verbs import Desk

COUNT = 100
GPUS = 200
SIM = 'engine = "sim"\nsim = { pinned = true }\n'
PAIR = (
    f'[roles.p]\nkind = "prefill"\n{SIM}[roles.d]\nkind = "decode"\ntensor-parallel = 2\n{SIM}'
    '[kv-transfer]\nconnector = "nixl"\n'
)
KINDS = (
    f"[roles.w]\ngpus = 1\n{SIM}",
    f"[roles.w]\ndata-parallel = 2\ngpus = 1\n{SIM}",
    f"[roles.a]\ngpus = 0.5\n{SIM}[roles.b]\ngpus = 0.5\n{SIM}",
    PAIR,
)
NEED = 25 * (1 + 2 + 1 + 3)


class Hall(Desk):
    """A machine with many GPUs, which takes a moment to look at."""

    gpus = GPUS

    async def machine(self):
        await asyncio.sleep(0)
        return declared(f"{self.gpus}xH100:pcie")

    def verb(self, index: int, kind: str) -> Verb:
        path = self.folder / f"t{index}.toml"
        text = f'name = "t{index}"\nmodel = "m"\n[frontend]\nport = {20_000 + index}\n{kind}'
        path.write_text(text)
        return Verb("up", {"file": str(path)})

    def all_at_once(self, verbs):
        async def ask():
            return await asyncio.gather(*(self.verbs.answer(verb) for verb in verbs))

        return self.stage.loop.run_until_complete(ask())


@pytest.fixture
def hall(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "objections", lambda *_: [])
    return Hall(stage, tmp_path)


def test_a_hundred_at_once_have_nothing_in_common(hall):
    replies = hall.all_at_once([hall.verb(n, KINDS[n % len(KINDS)]) for n in range(COUNT)])
    assert {reply.code for reply in replies} == {0}, [reply.text for reply in replies]
    units = list(hall.stage.supervisor.units.values())
    shares: Counter[str] = Counter()
    sharers: dict[str, set[str]] = {}
    for unit in units:
        for worker in unit.spec.members:
            for uuid in worker.gpu_uuids:
                shares[uuid] += worker.gpu_share
                sharers.setdefault(uuid, set()).add(unit.id.topology)
    assert len(shares) <= NEED
    assert sum(shares.values()) == NEED
    assert max(shares.values()) == 1

    desk = PortDesk(PortTable(hall.stage.run_dir.ports, write_atomically), lambda *_: None)
    taken: dict[int, str] = {}
    for unit in units:
        for worker in unit.spec.members:
            life = unit.id.life(worker.member, 1)
            for name, port in desk.assign(unit, life, worker).items():
                owner = str(unit.id) if name == "rendezvous" else worker.id
                for each in range(port, port + worker.port_counts.get(name, 1)):
                    assert taken.setdefault(each, owner) == owner
    assert len(taken) == 25 * (1 + 1 + 2)


def test_what_no_longer_fits_is_refused_with_who_has_it(hall):
    hall.gpus = 16
    kind = KINDS[0].replace("gpus = 1", "gpus = 4")
    replies = hall.all_at_once([hall.verb(n, kind) for n in range(5)])
    assert sorted(reply.code for reply in replies) == [0, 0, 0, 0, 1]
    (refused,) = (reply.text for reply in replies if reply.code)
    assert "needs 4 GPUs, 0 of 16 left: t" in refused
    assert "/w-0.0 has " in refused


def test_the_same_port_in_two_files_is_refused_to_the_second(hall):
    text = '[processes.p]\ncommand = ["x"]\nready = { tcp = "127.0.0.1:20000" }\n'
    assert [r.code for r in hall.all_at_once([hall.verb(0, KINDS[0])])] == [0]
    (reply,) = hall.all_at_once([hall.verb(1, KINDS[0] + text)])
    assert reply.code == 1
    assert "processes.p.ready.tcp: port 20000 is that of t0/frontend, which is up" in reply.text
