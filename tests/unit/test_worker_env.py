"""The environment of a worker: what is kept, what is removed, what only we may set."""

from orchestrator.core.worker_env import PrivateDirs, additions, masked, port_env, worker_env
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


def env(engine="vllm", declared=None, uuids=(), base=BASE):
    added = additions(engine=engine, declared=declared or {}, gpu_uuids=uuids, start_timeout_s=90.0)
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
