"""Options are checked before anything starts; faults strike when, and for as long as, they say."""

import asyncio

import pytest

from tests.asgi import sim_config
from workers.runtime.engine import EngineConfigError, EngineStartError
from workers.sim.engine import SimEngine
from workers.sim.faults import Faults
from workers.sim.options import Fault, decode_options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prefil-rate": 1.0}, "prefil-rate"),
        ({"step": -1}, "step"),
        ({"step": "10ms"}, "step"),
        ({"faults": [{"fault": "explode"}]}, "explode"),
        ({"faults": [{"fault": "crash", "after": 3}]}, "after"),
        ({"faults": [{"fault": "crash", "after-tokens": 1, "after-requests": 1}]}, "one of"),
        ({"faults": [{"fault": "crash", "after-tokens": 1, "after-transfers": 1}]}, "one of"),
        ({"transfer-rate": 0}, "transfer-rate"),
        ({"kv-transfer": {"lease": 0}}, "lease"),
        ({"kv-transfer": {"on-failure": "cry"}}, "on-failure"),
        ({"kv-blocks": 1}, "kv-blocks"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(EngineConfigError, match=said):
        decode_options(options)


def test_right_options():
    options = decode_options(
        {"startup": 2, "prefill-rate": 1e4, "faults": [{"fault": "crash", "after-requests": 2}]}
    )
    assert options.startup == 2.0
    assert options.faults == [Fault(fault="crash", after_requests=2)]


def faults(life, *wanted):
    struck = []
    made = Faults(list(wanted), life, struck.append, lambda _mute: struck.append("frozen"))
    return made, struck


@pytest.mark.parametrize(("incarnation", "holds"), [(1, True), (2, True), (3, False)])
def test_times(incarnation, holds):
    fault = Fault(fault="engine-death", line="x", times=2)
    made, struck = faults(f"agg/worker-0.0#{incarnation}", fault)
    asyncio.run(made.on_start())
    assert bool(struck) == holds


def test_after_requests_strikes_once():
    made, struck = faults("a/b-0.0#1", Fault(fault="engine-hang", after_requests=2))
    for _ in range(4):
        made.on_request(0)
    assert struck == ["frozen"]


def test_after_tokens_ignores_the_canary():
    made, struck = faults("a/b-0.0#1", Fault(fault="engine-hang", after_tokens=3))
    made.on_tokens(5)
    made.on_request(5)
    made.on_tokens(7)
    assert not struck
    made.on_tokens(8)
    assert struck == ["frozen"]


def test_a_line_is_printed(capsys):
    made, _ = faults("a/b-0.0#1", Fault(fault="log", line="CUDA out of memory"))
    asyncio.run(made.on_start())
    assert capsys.readouterr().err == "CUDA out of memory\n"


def test_memory_is_held():
    made, _ = faults("a/b-0.0#1", Fault(fault="allocate", bytes=1000))
    asyncio.run(made.on_start())
    assert [len(kept) for kept in made._kept] == [1000]


def test_death_at_start_and_progress():
    said = []

    async def run(**options):
        await SimEngine(sim_config(**options)).start(lambda text, percent: said.append(percent))

    with pytest.raises(EngineStartError, match="bad weights"):
        asyncio.run(run(faults=[{"fault": "engine-death", "line": "bad weights"}]))
    asyncio.run(run(startup=0.004))
    assert said == [0.0, 25.0, 50.0, 75.0]
