"""The environment of one worker, as a function of what it is: nothing is inherited by accident.

Three layers, the later wins: what the daemon's own environment has and may pass on; what the
topology says; what only we may set, because placement, isolation or supervision rest on it. A
worker that was given no GPU sees none, whatever the daemon's environment says.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orchestrator.topology import owned
from orchestrator.wire.ids import LifeId

NEVER_INHERITED = {*owned.ENV, "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
NOT_FOR_ENGINES = frozenset(
    {
        # Would lock us out of the engine's own application.
        "VLLM_API_KEY",
        # A shared directory mixes the metrics of all workers.
        "PROMETHEUS_MULTIPROC_DIR",
        # Every engine would scan upwards from the same port. None needs it: vLLM binds the ports of
        # its ranks at once, and those that we choose have flags and variables of their own.
        *owned.ENGINE_ENV,
        "VLLM_LOGGING_CONFIG_PATH",
        # Routes that reach into the engine.
        "VLLM_SERVER_DEV_MODE",
        # Left over from whatever launched the daemon.
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "LD_PRELOAD",
    }
)
NOT_FOR_ENGINES_PREFIXES = ("VLLM_DP_", "TORCHELASTIC_")
VLLM_DEFAULTS = {
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_DISABLE_LOG_LOGO": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}
"""What a vLLM worker gets unless the topology says otherwise; the daemon's own values don't."""
SIDE_CHANNEL = "side-channel"
"""The port at which prefill and decode workers tell each other where their KV cache lies."""
OUR_PYTHON = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"})
"""What would lead another interpreter to our packages."""
READY_TIMEOUT = "VLLM_ENGINE_READY_TIMEOUT_S"
STEP_TIMEOUT = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
PLUGIN = "dynorch"
"""Our plugin's name in vLLM: where the environment lists those to load, it must be among them."""
HIDDEN = "***"
_SECRET_FLAG = re.compile(
    r"-*([a-z0-9-]+[-_])?(key|token|secret|password|credentials?)", re.IGNORECASE
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


class PrivateDirs(msgspec.Struct, frozen=True):
    """Directories of one incarnation, removed after it: `tmp` for files, `rpc` for sockets."""

    tmp: str
    rpc: str


def additions(declared: Mapping[str, str], *, gpu_uuids: Iterable[str] = ()) -> dict[str, str]:
    """Collect what doesn't depend on the incarnation and so is in the plan, sorted by name.

    `declared` is the topology's env; for a vLLM worker, with `vllm_env` below it.
    """
    env = dict(declared)
    env["SPT_NOENV"] = "1"
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_uuids)
    return dict(sorted(env.items()))


def vllm_env(
    model: str, flags: Mapping[str, Any], *, start_s: float, step_s: float
) -> dict[str, str]:
    """What a vLLM worker gets unless the topology says otherwise.

    `start_s`, `step_s`: how long the start and one step may take, as the topology has it.
    """
    env = dict(VLLM_DEFAULTS)
    env[READY_TIMEOUT] = whole(start_s)
    env[STEP_TIMEOUT] = whole(step_s)
    if model.startswith(("/", "./", "../", "~")):
        # A local model needs nothing from the hub, whose time-outs would delay each start.
        env["HF_HUB_OFFLINE"] = "1"
    if flags.get("enable-lora") is True:
        # Frontends don't let clients reach the routes that this opens.
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return env


def whole(seconds: float) -> str:
    """Write seconds as vLLM reads them."""
    return str(max(1, round(seconds)))


def worker_env(
    base: Mapping[str, str],
    *,
    engine: str,
    added: Mapping[str, str],
    life: LifeId,
    nonce: str,
    dirs: PrivateDirs,
    advice: Mapping[str, str] | None = None,
    python: str = "",
) -> dict[str, str]:
    """Everything the worker's process starts with.

    `base`: the daemon's environment; `added`: from `additions`; `advice`: what holds unless one of
    them says otherwise; `nonce`: makes the tree's tag unique across machines' lives, so that a
    leftover can be told from a namesake; `python`: the interpreter, if it isn't ours.
    """
    env = {name: value for name, value in base.items() if _inherited(name, engine)}
    env = {**(advice or {}), **_elsewhere(env, python), **added}
    if engine == "vllm":
        _share_caches(env)
        if "VLLM_PLUGINS" in env:
            named = [name for name in env["VLLM_PLUGINS"].split(",") if name not in {"", PLUGIN}]
            env["VLLM_PLUGINS"] = ",".join([*named, PLUGIN])
    env["TMPDIR"] = dirs.tmp
    env["VLLM_RPC_BASE_PATH"] = dirs.rpc
    env["DYNORCH_TREE"] = f"{life.worker}/{life.incarnation}/{nonce}"
    env["DYNORCH_INCARNATION"] = str(life.incarnation)
    return dict(sorted(env.items()))


def port_env(engine: str, ports: Mapping[str, int], rank: int) -> dict[str, str]:
    """Tell vLLM of the ports that were chosen for it.

    It adds its data-parallel rank to the side channel's, so that is taken off before.
    """
    if engine == "vllm" and SIDE_CHANNEL in ports:
        return {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports[SIDE_CHANNEL] - rank)}
    return {}


def zygote_env(base: Mapping[str, str], profile: str, python: str = "") -> dict[str, str]:
    """What a zygote runs with: some libraries read settings when they are imported.

    `profile` is "vllm", "sim" or "bare"; `python`: the interpreter, if it isn't ours. Each worker
    gets its own environment after the fork.
    """
    engine = "vllm" if profile == "vllm" else ""
    env = {name: value for name, value in base.items() if _inherited(name, engine)}
    env = _elsewhere(env, python)
    return env | VLLM_DEFAULTS | {"SPT_NOENV": "1"} if engine else env


def masked(env: Mapping[str, str]) -> dict[str, str]:
    """Copy for people's eyes: values whose names smell of a secret are hidden."""
    return {name: HIDDEN if _SECRET.search(name) else value for name, value in env.items()}


def is_secret_flag(name: str) -> bool:
    """Say whether a flag's value is for nobody's eyes: `hf-token` is, `max-num-batched-tokens` not.

    Dashes in front are allowed.
    """
    return _SECRET_FLAG.fullmatch(name) is not None


def masked_argv(argv: Iterable[str]) -> tuple[str, ...]:
    """Copy for people's eyes: `--token X` and `--token=X` without what X is."""
    shown: list[str] = []
    hide = False
    for word in argv:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("-") and is_secret_flag(flag)
        shown.append(f"{flag}={HIDDEN}" if secret and equals else HIDDEN if hide else word)
        hide = secret and not equals
    return tuple(shown)


def _elsewhere(env: dict[str, str], python: str) -> dict[str, str]:
    """Take our interpreter's environment out, and let the other one's programs be found first."""
    if not python:
        return env
    kept = {name: value for name, value in env.items() if name not in OUR_PYTHON}
    folder = python.rpartition("/")[0]
    return kept | {"PATH": f"{folder}:{kept['PATH']}" if kept.get("PATH") else folder}


def _inherited(name: str, engine: str) -> bool:
    if name in NEVER_INHERITED or name.startswith(owned.ENV_PREFIX):
        return False
    if engine == "vllm":
        return name not in NOT_FOR_ENGINES and not name.startswith(NOT_FOR_ENGINES_PREFIXES)
    return True


def _share_caches(env: dict[str, str]) -> None:
    """Let all workers and lives compile once: what was compiled lies beside vLLM's own cache.

    The compiler's default is under TMPDIR, which dies with the worker; again costs minutes.
    """
    if cache := _vllm_cache(env):
        env.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{cache}/torchinductor")
        env.setdefault("TRITON_CACHE_DIR", f"{cache}/triton")


def _vllm_cache(env: Mapping[str, str]) -> str:
    if cache := env.get("VLLM_CACHE_ROOT"):
        return cache
    if cache_home := env.get("XDG_CACHE_HOME"):
        return f"{cache_home}/vllm"
    return f"{env['HOME']}/.cache/vllm" if env.get("HOME") else ""
