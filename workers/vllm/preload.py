"""What the zygote imports, so that its forks don't have to.

A cold vLLM start imports torch and vLLM three times over: in the server, in EngineCore, in the
engine's worker. A fork of a process that has imported them starts with everything in place. So
this list is what was measured to be imported later, by any of the three; what is missing in some
vLLM version costs a little time in each start and nothing else.

The image must be fit to be forked: exactly one thread, and no CUDA context (a child can't use its
parent's). Libraries that start threads when imported are told not to; what is computed from the
installation alone, such as the compiler's cache keys, is computed here once.

Variables that libraries read while being imported (see `IMPORT_TIME_ENV`) are those of the zygote
for ever: a worker that needs others needs another zygote, and is told so in its log.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from workers.runtime import interpreter

log = logging.getLogger("dynorch.preload")

IMPORT_TIME_ENV = (
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "TRANSFORMERS_OFFLINE",
)
"""Variables that are read during the imports; in a fork, changing them changes nothing."""

OFFLINE_ENV = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = frozenset({"1", "ON", "TRUE", "YES"})

ARCHITECTURES_ENV = "DYNORCH_ARCHITECTURES"
"""More model classes to import, by the names in `config.json`, separated by commas."""

ARCHITECTURES = (
    "DeepseekV3ForCausalLM",
    "Gemma3ForCausalLM",
    "Glm4MoeForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
)
"""Common text models; beside what vLLM itself imports they cost a tenth of a second together."""

MODULES = (
    # The three processes of an engine.
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.executor.multiproc_executor",
    "multiprocessing.popen_fork",
    "setproctitle",
    # What hosts them here.
    "workers.vllm.launch",
    "workers.vllm.main",
    # Imported by the engine's worker while it loads any model.
    "compressed_tensors",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.fused_moe.oracle.int8",
    "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.triton_utils.dispatcher",
    "vllm.v1.pool.flash_maxsim",
    # Imported by the application while it registers its routes.
    "model_hosting_container_standards.sagemaker",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.cohere.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.generate.structured_decisions.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender",
    "vllm.entrypoints.scale_out.factories",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.instrumentator.offline_docs",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "vllm.entrypoints.serve.utils.fingerprint",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.renderers.hf",
    "vllm.tool_parsers.hermes_tool_parser",
    # The compiler, which even an eager engine uses for its first log-probability.
    "sympy.tensor.tensor",
    "torch._dynamo.backends.inductor",
    "torch._dynamo.backends.tvm",
    "torch._export.passes._node_metadata_hook",
    "torch._functorch._aot_autograd.subclass_codegen",
    "torch._inductor.codegen.cpp_wrapper_cpu_array_ref",
    "torch._inductor.codegen.cpp_wrapper_gpu",
    "torch._inductor.codegen.cuda_combined_scheduling",
    "torch._inductor.codegen.wrapper_fxir",
    "torch._inductor.compile_fx",
    "torch._inductor.hooks",
    "torch._subclasses.schema_check_mode",
    "torch.distributed.tensor.experimental",
    "torch.export._trace",
    "torch.fx.experimental.validator",
)
CPU_MODULES = ("vllm.v1.worker.cpu_worker", "vllm.v1.attention.backends.cpu_attn")
CUDA_MODULES = ("vllm.v1.worker.gpu_worker", "vllm.v1.attention.backends.flash_attn")

FORK_ENV = {
    # OpenBLAS, inside NumPy, starts a thread per core when it is loaded.
    "OPENBLAS_NUM_THREADS": "1",
    # Used by transformers' tokenizers from the first batch on; not safe across a fork.
    "TOKENIZERS_PARALLELISM": "false",
}
"""What makes the image fit to be forked."""

CPU_ENV = {
    # Checking a precompiled header takes 1.7 s in every process that compiles anything, making
    # one takes 17 s, and the kernels that would profit are few.
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
}

_FAILURES = (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError)
"""What importing an optional piece of somebody else's software has been seen to raise."""

preloaded_env: dict[str, str | None] | None = None
"""`IMPORT_TIME_ENV` as it was during the imports; None where nothing was preloaded."""


def preload() -> dict[str, str]:
    """Import everything a worker needs; returns the versions of what this environment has.

    RuntimeError if something is missing or too old, or the image can't be forked; ImportError if
    this vLLM can't be used.
    """
    global preloaded_env  # noqa: PLW0603
    assert preloaded_env is None, "preload is called once"
    versions = interpreter.require("vllm")
    preloaded_env = {name: os.environ.get(name) for name in IMPORT_TIME_ENV}
    for name, value in {**FORK_ENV, **CPU_ENV}.items():
        os.environ.setdefault(name, value)
    importlib.import_module("vllm.v1.engine.async_llm")
    platform = importlib.import_module("vllm.platforms").current_platform
    missing = _import_all((*MODULES, *(CPU_MODULES if platform.is_cpu() else CUDA_MODULES)))
    more = os.environ.get(ARCHITECTURES_ENV, "").split(",")
    missing += _import_models(dict.fromkeys([*ARCHITECTURES, *filter(None, more)]))
    _warm_compiler(cpu=platform.is_cpu())
    _find_command_line()
    if missing:
        log.info("not preloaded, so imported in each start: %s", ", ".join(missing))
    _check_forkable()
    return versions


def adopt_environment() -> list[str]:
    """Let this worker's environment count; return the names whose values come too late.

    Whether the model hub may be asked is read at import time as well, but kept where it can be set.
    """
    if preloaded_env is None:
        return []
    changed = [name for name, value in preloaded_env.items() if os.environ.get(name) != value]
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:
        hub.HF_HUB_OFFLINE = any(  # type: ignore[attr-defined]
            os.environ.get(name, "").upper() in TRUE for name in OFFLINE_ENV
        )
        changed = [name for name in changed if name not in OFFLINE_ENV]
    return changed


def _import_all(modules: Iterable[str]) -> list[str]:
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except _FAILURES as error:
            missing.append(f"{module} ({type(error).__name__})")
    return missing


def _import_models(architectures: Iterable[str]) -> list[str]:
    """Import model classes and register them as such.

    vLLM registers names only, and looks into a class in a subprocess of its own before it uses
    it, lest the parent touch CUDA: 13 s in the first start on a machine. A registered class it
    looks at directly.
    """
    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    missing = []
    for architecture in architectures:
        try:
            registered = registry.models[architecture]
            registry.register_model(architecture, registered.load_model_cls())
        except (*_FAILURES, KeyError) as error:
            missing.append(f"{architecture} ({type(error).__name__})")
    return missing


def _warm_compiler(*, cpu: bool) -> None:
    """Compute what the compiler's caches are keyed by: hashes of torch's and Triton's sources."""
    try:
        codecache = importlib.import_module("torch._inductor.codecache")
        codecache.torch_key()
        codecache.triton_key()
        if cpu:
            # Which vector instructions work here is tried out in a subprocess: over a second.
            importlib.import_module("torch._inductor.cpu_vec_isa").pick_vec_isa()
    except _FAILURES as error:
        log.info("the compiler's cache keys weren't prepared: %s", error)


def _find_command_line() -> None:
    """Let `setproctitle` find the command line now: after a title of ours it couldn't any more."""
    try:
        importlib.import_module("setproctitle").getproctitle()
    except _FAILURES as error:
        log.info("vLLM's processes will not be named: %s", error)


def _check_forkable() -> None:
    tasks = Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())]
    if names:
        raise RuntimeError(f"a fork would lose these threads: {', '.join(names)}")
    if sys.modules["torch"].cuda.is_initialized():
        raise RuntimeError("CUDA was initialised: a fork can't use its parent's context")
