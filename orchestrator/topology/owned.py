"""What dynorch sets itself, so that a topology may not: environment variables and vLLM flags.

Each rests on the placement, the isolation of workers or the shape of the topology. Two places
that say the same thing sooner or later say different things; so the second is refused, with the
name of the first.
"""

ENV_PREFIX = "DYNORCH_"
ENV = {
    "CUDA_VISIBLE_DEVICES": "the placement sets it; write gpus",
    "CUDA_DEVICE_ORDER": "the placement sets it; leave it out",
    "SPT_NOENV": "the supervision needs it; leave it out",
    "TMPDIR": "each incarnation has its own; leave it out",
    "VLLM_RPC_BASE_PATH": "each incarnation has its own; leave it out",
}
"""Variable -> why, and what would be right."""
ENGINE_ENV = {
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "each worker has its own, from the port table; leave it out",
    "VLLM_PORT": "engines that look for ports from the same one on take them from each other; "
    "leave it out",
}
"""The same, for engine roles; a plain command may set them."""

_NO_PORT = "a worker has no HTTP port of its own; [frontend] has host and port"
_RANKS = "the ranks of a gang are numbered by dynorch; write data-parallel"
_SECURE = "the frontend speaks plain HTTP; put a TLS proxy in front of it"
VLLM_FLAGS = {
    "model": "the role's model key says it; write model",
    "served-model-name": "the role's own key says it; write served-model-name",
    "tensor-parallel-size": "the placement needs it; write tensor-parallel",
    "pipeline-parallel-size": "the placement needs it; write pipeline-parallel",
    "data-parallel-size": "the gang's size; write data-parallel",
    "data-parallel-rank": _RANKS,
    "data-parallel-start-rank": _RANKS,
    "data-parallel-size-local": _RANKS,
    "data-parallel-address": _RANKS,
    "data-parallel-rpc-port": _RANKS,
    "data-parallel-backend": _RANKS,
    "data-parallel-hybrid-lb": _RANKS,
    "data-parallel-external-lb": _RANKS,
    "enable-expert-parallel": "the role's own key says it; write expert-parallel",
    "kv-transfer-config": "it must agree between roles; write a [kv-transfer] table",
    "kv-events-config": 'it must agree with the router; write routing = "kv"',
    "device-ids": "the placement sets it; write gpus",
    "host": _NO_PORT,
    "port": _NO_PORT,
    "uds": _NO_PORT,
    "ssl-keyfile": _SECURE,
    "ssl-certfile": _SECURE,
    "ssl-ca-certs": _SECURE,
    "api-key": "the frontend would be locked out of its own workers; leave it out",
    "api-server-count": "one worker is one process; write replicas",
    "headless": "one worker is one process; write replicas",
    "nnodes": "a topology is one machine; leave it out",
    "node-rank": "a topology is one machine; leave it out",
    "master-addr": "a topology is one machine; leave it out",
    "master-port": "a topology is one machine; leave it out",
    "config": "flags from a second file escape every check; write them here",
    "shutdown-timeout": "the supervisor drains; write stop = { drain = ... }",
}
"""Flag -> why, and what would be right."""


def env_refusal(name: str, *, engine: bool) -> str | None:
    """Why a topology may not set this variable, and what would be right; None if it may.

    `engine`: it would reach an engine's worker.
    """
    if name.startswith(ENV_PREFIX):
        return f"names that begin with {ENV_PREFIX} are dynorch's own; rename it"
    return ENV.get(name) or (ENGINE_ENV.get(name) if engine else None)
