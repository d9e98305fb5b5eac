"""The plan: what would run where, the same bytes each time."""

import json
from pathlib import Path

import msgspec
import pytest
import typer

from orchestrator.cli import files
from orchestrator.core.declared import declared
from orchestrator.core.inventory import Inventory
from orchestrator.core.placement import place
from orchestrator.core.plan import build_plan
from orchestrator.core.vllm_flags import flag_argv
from orchestrator.topology.load import load, parse
from orchestrator.wire.ids import ReplicaId

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"

EVERYTHING = """
name = "all"
model = "/models/qwen"
served-model-name = ["chat", "qwen"]
env = { HF_HOME = "/hf", A = "1" }

[frontend]
port = 8010
replicas = 2

[roles.big]
replicas = 2
tensor-parallel = 2
vllm = { enforce-eager = true, enable-prefix-caching = false, max-model-len = 4096, \
lora-modules = ["a=/a", "b=/b"], compilation-config = { level = 3, b = [1] }, seed = "0" }
env = { A = "2" }

[roles.moe]
model = "org/moe"
data-parallel = 2
expert-parallel = true
gpus = [6, 7]

[roles.small]
engine = "sim"

[processes.cache]
command = ["cache-server", "--port", "9000"]
cwd = "/srv"
depends-on = ["small"]
"""


def plan(text, inventory="8xH100", engine="auto"):
    topology = parse(text, "t.toml", {})
    found = declared(inventory) if inventory else Inventory()
    placements = place(topology, found, engine)
    assert not isinstance(placements, list), placements
    return build_plan(topology, placements)


def rendered(text, inventory="8xH100", engine="auto"):
    return json.dumps(msgspec.to_builtins(plan(text, inventory, engine)), indent=1) + "\n"


@pytest.mark.parametrize(
    ("name", "inventory", "engine"),
    [("vllm", "8xH100", "auto"), ("sim", "", "sim")],
)
def test_golden(name, inventory, engine):
    """To accept a change: write the left side into the file, and read the difference."""
    golden = GOLDEN / f"plan-{name}.json"
    assert rendered(EVERYTHING, inventory, engine) == golden.read_text()


def test_stable_between_runs():
    assert rendered(EVERYTHING) == rendered(EVERYTHING)


def test_ids_order_and_gangs():
    planned = plan(EVERYTHING)
    assert [worker.id for worker in planned.workers] == [
        "all/frontend-0.0", "all/frontend-1.0", "all/big-0.0", "all/big-1.0",
        "all/moe-0.0", "all/moe-0.1", "all/small-0.0", "all/cache-0.0",
    ]  # fmt: skip
    gang = planned.replicas[ReplicaId("all", "moe", 0)]
    assert [worker.member for worker in gang] == [0, 1]
    assert [worker.gpus for worker in gang] == [(6,), (7,)]
    assert [worker.options["data-parallel-rank"] for worker in gang] == [0, 1]


def test_every_rank_has_the_flags_of_the_others_but_for_its_number():
    gang = plan(EVERYTHING).replicas[ReplicaId("all", "moe", 0)]
    flags = [dict(worker.options) for worker in gang]
    assert [each.pop("data-parallel-rank") for each in flags] == [0, 1]
    assert (
        flags[0]
        == flags[1]
        == {
            "data-parallel-size": 2,
            "enable-expert-parallel": True,
        }
    )


@pytest.mark.parametrize("engine", ["vllm", "sim"])
@pytest.mark.parametrize("balancing", ["internal", "hybrid"])
def test_all_ranks_in_one_worker(balancing, engine):
    text = 'name="t"\nmodel="m"\n[roles.w]\ndata-parallel = 2\ntensor-parallel = 2\n'
    text += f'data-parallel-balancing = "{balancing}"\nvllm = {{ all2all-backend = "naive" }}\n'
    (worker,) = plan(text, engine=engine).workers[1:]
    assert worker.ports == {}, "they meet in their own process"
    if engine == "vllm":
        assert worker.gpus == (0, 1, 2, 3)
        assert worker.options == {
            "all2all-backend": "naive",
            **({"data-parallel-hybrid-lb": True} if balancing == "hybrid" else {}),
            "data-parallel-size": 2,
            "data-parallel-size-local": 2,
            "tensor-parallel-size": 2,
        }


def test_gpus_of_a_worker_with_all_ranks_are_divided_among_them():
    text = 'name="t"\nmodel="m"\n[roles.w]\ndata-parallel = 2\ngpus = 4\nkind = "prefill"\n'
    text += 'data-parallel-balancing = "internal"\n[roles.d]\nkind = "decode"\n[kv-transfer]\n'
    worker = plan(text + 'connector = "nixl"').workers[1]
    assert worker.options["tensor-parallel-size"] == 2
    assert worker.port_counts == {"side-channel": 4}


PAIR = """
name = "pd"
model = "m"
[roles.p]
kind = "prefill"
gpus = 2
[roles.d]
kind = "decode"
data-parallel = 2
[kv-transfer]
connector = "nixl"
enforce = true
"""


def test_both_halves_are_told_of_one_transfer():
    frontend, prefill, decode, rank_1 = plan(PAIR).workers
    assert frontend.options["kv-transfer"] == {"lease": 120.0, "enforce": True}
    assert prefill.options["kv-transfer-config"] == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_producer",
        "kv_buffer_device": "cuda",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": 120},
    }
    assert decode.options["kv-transfer-config"]["kv_role"] == "kv_consumer"
    assert (prefill.ports, prefill.port_counts) == ({"side-channel": 0}, {"side-channel": 2})
    assert rank_1.ports == {"rendezvous": 0, "side-channel": 0}
    assert rank_1.port_counts == {}
    assert '"kv_role":"kv_producer"' in " ".join(prefill.argv)


def test_vllm_counts_a_lease_in_whole_seconds():
    text = PAIR.replace("enforce = true", 'lease = "1600ms"')
    _, prefill, *_ = plan(text).workers
    extra = prefill.options["kv-transfer-config"]["kv_connector_extra_config"]
    assert msgspec.json.encode(extra) == b'{"kv_lease_duration":2}'


def test_the_simulated_halves_are_told_of_the_same_transfer():
    text = PAIR.replace("enforce = true", 'lease = "90s"\non-failure = "fail"')
    frontend, prefill, decode, _ = plan(text, "").workers
    assert frontend.options["kv-transfer"] == {"lease": 90.0, "enforce": False}
    said = {"lease": 90.0, "on-failure": "fail"}
    assert prefill.options["kv-transfer"] == decode.options["kv-transfer"] == said
    assert prefill.ports == {"side-channel": 0}


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("cpu", 1, "cpu"), ("cuda", 1, "cuda")],
)
def test_where_transfers_begin(device, gpus, expected):
    text = PAIR.replace("gpus = 2", f"gpus = {gpus}") + f'buffer-device = "{device}"\n'
    (prefill,) = (
        worker for worker in plan(text, engine="vllm").workers if worker.kind == "prefill"
    )
    assert prefill.options["kv-transfer-config"]["kv_buffer_device"] == expected


def test_vllm_command_line():
    big = next(worker for worker in plan(EVERYTHING).workers if worker.id == "all/big-1.0")
    assert big.argv == (
        "vllm", "serve", "/models/qwen",
        "--compilation-config", '{"b":[1],"level":3}',
        "--no-enable-prefix-caching", "--enforce-eager", "--lora-modules", "a=/a", "b=/b",
        "--max-model-len", "4096", "--seed", "0",
        "--served-model-name", "chat", "qwen", "--tensor-parallel-size", "2",
    )  # fmt: skip
    assert big.served_names == ("chat", "qwen")
    assert big.env["CUDA_VISIBLE_DEVICES"] == "GPU-declared-2,GPU-declared-3"
    assert big.env["HF_HUB_OFFLINE"] == "1", "the model is a path"
    assert big.env["A"] == "2"
    assert list(big.env) == sorted(big.env)


def test_flags():
    flags = {"a": True, "b": False, "c": 1.5, "d": ["x", {"k": 1}], "e": {"k": True}, "f": []}
    assert flag_argv(flags) == [
        "--a", "--no-b", "--c", "1.5", "--d", "x", '{"k":1}', "--e", '{"k":true}', "--f",
    ]  # fmt: skip


def test_gpus_alone_make_tensor_parallel():
    (worker,) = plan('name="t"\nmodel="m"\n[roles.w]\ngpus = 4\n').workers[1:]
    assert worker.options == {"tensor-parallel-size": 4}
    (worker,) = plan('name="t"\nmodel="m"\n[roles.w]\ngpus = 4\npipeline-parallel = 2\n').workers[
        1:
    ]
    assert worker.options == {"pipeline-parallel-size": 2, "tensor-parallel-size": 2}


def test_commands_alone_need_no_frontend():
    (worker,) = plan('name = "t"\n[processes.p]\ncommand = ["sleep", "9"]\n', "").workers
    assert (worker.kind, worker.entry, worker.argv) == ("process", "", ("sleep", "9"))
    assert worker.env["CUDA_VISIBLE_DEVICES"] == ""


SHIPPED = sorted((ROOT / "topologies").glob("*.toml"))
EIGHT = "8xH100"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_plan_of_every_shipped_topology_is_the_same_bytes_on_every_machine(path, capsys):
    """To accept a change: `dynorch plan FILE --gpus 8xH100`, and read the difference."""
    golden = GOLDEN / "plans" / f"{path.stem}.txt"
    files.plan(path, "auto", EIGHT, as_json=False)
    assert capsys.readouterr().out == golden.read_text()


def test_a_file_declares_a_machine(tmp_path, capsys):
    machine = tmp_path / "machine.toml"
    gpu = 'name = "X"\ntotal_bytes = 85899345920\nnuma = 1\n'
    machine.write_text(
        f'[[gpus]]\nindex = 3\nuuid = "GPU-x"\n{gpu}'
        "[[nodes]]\nindex = 0\ncores = [[0]]\n[[nodes]]\nindex = 1\ncores = [[1, 5], [2, 6]]\n"
    )
    files.plan(ROOT / "topologies/agg.toml", "auto", f"@{machine}", as_json=False)
    said = capsys.readouterr().out
    assert "gpu 3 (GPU-x): X, 80.0 GiB, NUMA node 1: agg/worker-0.0\n" in said
    assert "  cpus     1-2,5-6 (NUMA node 1)\n" in said
    for wrong, why in (
        ("@/none", "No such file"),
        (f"@{ROOT / 'Makefile'}", "declares no machine"),
    ):
        with pytest.raises(typer.Exit) as refused:
            files.plan(ROOT / "topologies/agg.toml", "auto", wrong, as_json=False)
        assert refused.value.exit_code == 2
        assert f"--gpus: {why}" in (text := capsys.readouterr().err) or why in text


def test_no_plan_is_kept_of_what_is_no_longer_shipped():
    assert [path.stem for path in sorted((GOLDEN / "plans").iterdir())] == [
        path.stem for path in SHIPPED
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_topology_has_a_plan(path):
    topology = load(path, {})
    for inventory in (declared("8xH100"), Inventory()):
        placements = place(topology, inventory)
        assert not isinstance(placements, list)
        engines = {worker.engine for worker in build_plan(topology, placements).workers}
        assert engines & {"vllm", "sim"} == ({"vllm"} if inventory.gpus else {"sim"})
