"""The environment of a worker: what is kept, what is removed, what only we may set."""

import pytest

from orchestrator.core.worker_env import (
    PrivateDirs,
    additions,
    masked,
    port_env,
    vllm_env,
    worker_env,
)
from orchestrator.wire.ids import ReplicaId

LIFE = ReplicaId("t", "w", 1).life(0, 4)
DIRS = PrivateDirs("/run/t", "/run/t")
BASE = {
    "HOME": "/home/me", "PATH": "/bin", "LD_PRELOAD": "x.so", "CUDA_VISIBLE_DEVICES": "5,6",
    "VLLM_API_KEY": "k", "VLLM_DP_RANK": "3", "VLLM_PORT": "tcp://1.2.3.4:1", "RANK": "1",
    "MASTER_ADDR": "h", "PROMETHEUS_MULTIPROC_DIR": "/shared", "NOTIFY_SOCKET": "/run/n",
    "DYNORCH_TREE": "outer", "VLLM_HOST_IP": "10.0.0.1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "TMPDIR": "/var/tmp",
}  # fmt: skip


def env(engine="vllm", declared=None, uuids=(), base=BASE, **flags):
    declared = declared or {}
    if engine == "vllm":
        declared = vllm_env("org/m", flags, start_s=90.0, step_s=120.0) | declared
    added = additions(declared, gpu_uuids=uuids)
    return worker_env(base, engine=engine, added=added, life=LIFE, nonce="n0", dirs=DIRS)


def test_vllm_worker():
    found = env(uuids=("GPU-a", "GPU-b"))
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert found["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert found["DYNORCH_TREE"] == "t/w-1.0/4/n0"
    assert found["DYNORCH_INCARNATION"] == "4"
    assert found["TMPDIR"] == found["VLLM_RPC_BASE_PATH"] == "/run/t"
    assert found["VLLM_ENGINE_READY_TIMEOUT_S"] == "90"
    assert found["VLLM_HOST_IP"] == "127.0.0.1", "the daemon's own doesn't count"
    assert found["SPT_NOENV"] == "1"
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/home/me/.cache/vllm/torchinductor"
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert found["PATH"] == "/bin"
    gone = {"LD_PRELOAD", "VLLM_API_KEY", "VLLM_DP_RANK", "VLLM_PORT", "RANK", "MASTER_ADDR",
            "PROMETHEUS_MULTIPROC_DIR", "NOTIFY_SOCKET"}  # fmt: skip
    assert not gone & found.keys()
    assert list(found) == sorted(found)


def test_vllm_adds_its_rank_to_the_side_channel_s_port_itself():
    """vllm.md 3.1: the actual port is the base and data_parallel_index."""
    assert port_env("vllm", {"side-channel": 29_003}, 2) == {"VLLM_NIXL_SIDE_CHANNEL_PORT": "29001"}
    assert port_env("vllm", {"rendezvous": 1}, 0) == port_env("sim", {"side-channel": 1}, 0) == {}


SET = {
    "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "VLLM_DISABLE_LOG_LOGO": "1", "VLLM_DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_COLOR": "0", "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "fork",
    "VLLM_ENGINE_READY_TIMEOUT_S": "90", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "120",
}  # fmt: skip
REMOVED = (
    "VLLM_API_KEY", "PROMETHEUS_MULTIPROC_DIR", "VLLM_DP_RANK", "VLLM_DP_MASTER_PORT", "VLLM_PORT",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
    "MASTER_PORT", "TORCHELASTIC_RUN_ID", "VLLM_LOGGING_CONFIG_PATH", "LD_PRELOAD",
    "VLLM_SERVER_DEV_MODE", "VLLM_NIXL_SIDE_CHANNEL_PORT",
)  # fmt: skip
SHARED = ("VLLM_CACHE_ROOT", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.mark.parametrize("name", SET)
def test_what_is_set_whatever_the_daemon_has(name):
    """vllm.md 5.6, seed.md 1.10."""
    assert env(base=BASE | {name: "other"})[name] == SET[name]


@pytest.mark.parametrize("name", REMOVED)
def test_what_is_removed(name):
    """vllm.md 5.6; ranks and routes of other launchers: seed.md 1.11, vllm.md 6."""
    assert name not in env(base=BASE | {name: "other"})


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_can_be_moved_from_outside(name):
    """vllm.md 5.6: caches that make restarts fast."""
    assert env(base=BASE | {name: "/big"})[name] == "/big"


def test_what_was_compiled_lies_where_the_next_life_finds_it():
    found = env(base=BASE | {"VLLM_CACHE_ROOT": "/big"})
    assert found["TORCHINDUCTOR_CACHE_DIR"] == "/big/torchinductor"
    assert found["TRITON_CACHE_DIR"] == "/big/triton"


@pytest.mark.parametrize("name", ["TMPDIR", "VLLM_RPC_BASE_PATH"])
def test_what_is_private_to_a_life(name):
    """vllm.md 5.4: sockets and rendezvous files that even a clean exit leaves."""
    assert env(base=BASE | {name: "/tmp"})[name] == "/run/t"


@pytest.mark.parametrize(
    ("model", "offline"),
    [("/m", True), ("./m", True), ("../m", True), ("~/m", True), ("org/m", False)],
)
def test_a_local_model_asks_no_hub(model, offline):
    """vllm.md 5.6."""
    found = vllm_env(model, {}, start_s=1.0, step_s=1.0)
    assert ("HF_HUB_OFFLINE" in found) is offline


def test_adapters_can_be_loaded_where_the_role_has_them():
    """seed.md 1.10."""
    assert env(**{"enable-lora": True})["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in env(**{"enable-lora": False})
    declared = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}
    assert env(declared=declared, **{"enable-lora": True}).items() >= declared.items()


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "dynorch"), ("a", "a,dynorch"), ("dynorch,a", "a,dynorch"), (None, None)],
)
def test_a_list_of_plugins_has_ours(given, expected):
    """vllm.md 5.2: VLLM_PLUGINS filters."""
    declared = {} if given is None else {"VLLM_PLUGINS": given}
    assert env(declared=declared).get("VLLM_PLUGINS") == expected


def test_no_time_at_all_is_a_second():
    found = vllm_env("m", {}, start_s=0.2, step_s=0.5)
    assert found["VLLM_ENGINE_READY_TIMEOUT_S"] == "1"
    assert found["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"] == "1"


def test_without_gpus_a_worker_sees_none():
    for engine in ("vllm", "sim", ""):
        assert env(engine)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_topology_wins_over_our_defaults_and_the_daemons_environment():
    found = env(declared={"VLLM_HOST_IP": "::1", "PATH": "/opt"})
    assert (found["VLLM_HOST_IP"], found["PATH"]) == ("::1", "/opt")


def test_a_plain_command_keeps_what_is_not_ours():
    found = env("")
    assert found["LD_PRELOAD"] == "x.so"
    assert found["RANK"] == "1"
    assert "NOTIFY_SOCKET" not in found
    assert "VLLM_NO_USAGE_STATS" not in found
    assert found["DYNORCH_TREE"] == "t/w-1.0/4/n0"


def test_no_home_no_cache():
    assert "TORCHINDUCTOR_CACHE_DIR" not in env(base={})
    assert env(base={"XDG_CACHE_HOME": "/c"})["TORCHINDUCTOR_CACHE_DIR"].startswith("/c/vllm/")


def test_secrets_are_masked_for_people():
    assert masked({"HF_TOKEN": "hf_x", "A": "1"}) == {"HF_TOKEN": "***", "A": "1"}
