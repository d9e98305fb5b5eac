"""Excerpts of logs, one or more for each row of the failure table, in vLLM's own style.

Those of rows 3, 22, 23, 26, 29 to 32, 34, 36 to 40, 44, 46, 49, 50 and 55 are what vLLM 0.32 really
wrote, shortened; the others put the words of its source between the lines that it puts around them.
"""

from typing import NamedTuple

from orchestrator.core.reasons import Cause

BEFORE, AFTER = None, 3600.0


class Sample(NamedTuple):
    """`said` is in the sentence, `todo` in the advice."""

    row: str
    ready_s: float | None
    log: str
    cause: Cause
    said: str = ""
    todo: str = ""


def raised(text: str, process: str = "Worker", header: str = "WorkerProc failed to start.") -> str:
    """A traceback as vLLM logs it, and what the outer processes make of it."""
    record = f"({process} pid=812) ERROR 11-22 17:06:51 [multiproc_executor.py:953] "
    frames = [
        header,
        "Traceback (most recent call last):",
        '  File "/x/vllm/v1/executor/multiproc_executor.py", line 920, in worker_main',
        "    worker = WorkerProc(*args, **kwargs)",
        "             ^^^^^^^^^^^^^^^^^^^^^^^^^^^",
        *text.splitlines(),
    ]
    return "\n".join(
        [
            "(MainProcess pid=79) INFO 11-22 17:06:40 [model.py:733] Resolved architecture: Qwen3",
            "(Worker pid=812) WARNING 11-22 17:06:41 [cpu.py:114] libiomp is not found: Failed",
            *(record + line for line in frames),
            CORE_FAILED,
            NOISE,
        ]
    )


CORE_FAILED = """\
(EngineCore pid=803) ERROR 11-22 17:06:51 [core.py:1510] EngineCore failed to start.
(EngineCore pid=803) ERROR 11-22 17:06:51 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=803) ERROR 11-22 17:06:51 [core.py:1510]   File "/x/core.py", line 1482, in run
(EngineCore pid=803) ERROR 11-22 17:06:51 [core.py:1510]     engine_core = EngineCoreProc(*args)
(EngineCore pid=803) ERROR 11-22 17:06:51 [core.py:1510] Exception: WorkerProc initialization \
failed due to an exception in a background process. See stack trace for root cause.
Process EngineCore:
Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/process.py", line 314, in _bootstrap
    self.run()
Exception: WorkerProc initialization failed due to an exception in a background process. \
See stack trace for root cause.
Traceback (most recent call last):
  File "/x/vllm/entrypoints/openai/api_server.py", line 30, in run_server
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"""
NOISE = """\
/x/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 \
leaked shared_memory objects to clean up at shutdown
  warnings.warn('resource_tracker: There appear to be %d '
[rank0]:[W1122 17:06:52.0 ProcessGroupNCCL.cpp:1] Warning: destroy_process_group() was not called
nanobind: leaked 2 instances! Error"""


def died(text: str, process: str = "EngineCore") -> str:
    """A fatal error of a ready engine, and the hour of serving before it."""
    early = "(EngineCore pid=803) ERROR 11-22 16:06:51 [x.py:1] ValueError: one request's, long ago"
    return early + "\n" + raised(text, process, "EngineCore encountered a fatal error.")


OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 79.15 GiB of which 1.44 GiB is free. Process 1 has 77 GiB memory in use."
)
SHM = "/dev/" + "shm"
CONFIG, CRASH = Cause.CONFIG, Cause.START_CRASH

SAMPLES = [
    Sample("1", BEFORE, raised(
        "ValueError: Free memory on device cuda:0 (3.21/79.15 GiB) on startup is less than desired"
        " GPU memory utilization (0.92, 72.82 GiB). Decrease GPU memory utilization or reduce GPU"
        " memory used by other processes."),
        Cause.GPU_BUSY, "3.21 of 79.15 GiB are free on cuda:0, 72.82 GiB are wanted", "nvidia-smi"),
    Sample("1", BEFORE, raised(
        "ValueError: Free memory on device cuda:1 (9/79 GiB) on startup is less than the engine's"
        " budget after excluding external process's weights (0.9, 71 GiB)."),
        Cause.GPU_BUSY, "cuda:1"),
    Sample("2", BEFORE, raised(
        "ValueError: No available memory for the cache blocks. Try increasing"
        " `gpu_memory_utilization` when initializing the engine", "EngineCore"),
        Cause.OOM_LOAD, "no room for the KV cache", "raise gpu-memory-utilization"),
    Sample("3", BEFORE, raised(
        "ValueError: To serve at least one request with the model's max seq len (131072), (14.0 GiB"
        " KV cache is needed, which is larger than the available KV cache memory (9.52 GiB). Based"
        " on the available memory, the estimated maximum model length is 89120. Try increasing"
        " `gpu_memory_utilization` or decreasing `max_model_len`", "EngineCore"),
        Cause.OOM_LOAD, "131072 doesn't fit into the KV cache: it needs 14.0 GiB, 9.52 GiB",
        "lower max-model-len to 89120"),
    Sample("4", BEFORE, raised(OOM), Cause.OOM_LOAD,
           "2.00 GiB more were wanted, 1.44 GiB of 79.15 GiB were free", "tensor-parallel"),
    Sample("5", BEFORE, raised(
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy"
        " requests. Please try lowering `max_num_seqs`"),
        Cause.OOM_LOAD, "with 1024 requests", "max-num-seqs"),
    Sample("5", BEFORE, "(Worker pid=812) Capturing CUDA graphs:  10%|#  | 7/67\n" + raised(OOM),
           Cause.OOM_LOAD, "while CUDA graphs were captured", "enforce-eager"),
    Sample("6", AFTER, died(OOM, "Worker"), Cause.CRASH, "while serving: 2.00 GiB", "max-num-seqs"),
    Sample("7", BEFORE, raised(
        "AssertionError: Error in memory profiling. Initial free memory 70.1 GiB, current free"
        " memory 75.3 GiB. This happens when other processes release GPU memory"),
        CRASH, "70.1 GiB free, then 75.3", "one after the other"),
    Sample("8", BEFORE, "RuntimeError: Failed to infer device type, please set the environment",
           CONFIG, "sees no GPU", "nvidia-smi"),
    Sample("9", BEFORE, raised(
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
        CONFIG, "driver is too old", "upgrade the driver"),
    Sample("9", BEFORE, raised(
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version"),
        CONFIG),
    Sample("9", BEFORE, raised("RuntimeError: CUDA error: system not yet initialized"),
           CRASH, "fabric", "fabricmanager"),
    Sample("10", BEFORE, raised("RuntimeError: No CUDA GPUs are available"), CONFIG, "can't see"),
    Sample("10", BEFORE, raised("torch.AcceleratorError: CUDA error: invalid device ordinal"),
           CONFIG),
    Sample("11", AFTER, died(
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered", "Worker"),
        Cause.CRASH, "kernel failed", "enforce-eager"),
    Sample("11", BEFORE, raised("RuntimeError: CUDA error: device-side assert triggered"), CRASH),
    Sample("12", AFTER, died(
        "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", "Worker"),
        Cause.GPU_LOST, "GPU has failed", "nvidia-smi -r"),
    Sample("12", BEFORE, "NVRM: Xid (PCI:0000:41:00): 79, pid=1, GPU has fallen off the bus.",
           Cause.GPU_LOST),
    Sample("12", BEFORE, raised("vllm.third_party.pynvml.NVMLError_Unknown: nvmlDeviceGetHandleBy"
                                "Index(0) Unknown Error"), Cause.GPU_LOST),
    Sample("13", BEFORE, raised("RuntimeError: NCCL error: unhandled system error (run with"
                                " NCCL_DEBUG=INFO for details)"), CRASH, "NCCL", "NCCL_DEBUG"),
    Sample("13", BEFORE, "box:812:820 [0] NCCL WARN Call to connect returned Connection refused",
           CRASH, "NCCL"),
    Sample("14", AFTER, "[rank1]:[E1122 17:06:51.1 ProcessGroupNCCL.cpp:688] [Rank 1] Watchdog"
           " caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE,"
           " Timeout(ms)=600000) ran for 600018 milliseconds before timing out.",
           Cause.CRASH, "for another rank, 600000 ms", "look at the other ranks"),
    Sample("15", BEFORE, raised("RuntimeError: Gloo connectFullMesh failed with [..] no error"),
           CONFIG, "network interface", "GLOO_SOCKET_IFNAME"),
    Sample("15", BEFORE, raised(
        "RuntimeError: Unable to resolve hostname to a (local) address"), CONFIG),
    Sample("16", AFTER, died(
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by"
        " peer [127.0.0.1]:33717", "EngineCore_DP1"),
        Cause.CRASH, "another rank", "that rank's log"),
    Sample("17", BEFORE, "OSError: [Errno 98] error while attempting to bind on address"
           " ('127.0.0.1', 8000): address already in use",
           Cause.PORT_IN_USE, "127.0.0.1, port 8000", "ss -ltnp"),
    Sample("17", BEFORE, raised(
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local"
        " network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE"),
        Cause.PORT_IN_USE, "29500"),
    Sample("18", BEFORE, """\
(EngineCore pid=803) Exception in thread nixl_handshake_listener:
(EngineCore pid=803) Traceback (most recent call last):
(EngineCore pid=803)   File "/usr/lib/python3.11/threading.py", line 1045, in _bootstrap_inner
(EngineCore pid=803)     self.run()
(EngineCore pid=803) zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5600')
""", Cause.PORT_IN_USE, "NIXL's port is taken: 127.0.0.1:5600", "another"),
    Sample("19", BEFORE, raised(
        "RuntimeError: Did not receive response from front-end process within 5 minutes",
        "EngineCore_DP1"), CRASH, "first rank", "rank 0"),
    Sample("20", BEFORE, raised(
        "RuntimeError: Configuration mismatch detected for engine 1. All DP workers must have"
        " identical configurations", "EngineCore"), CONFIG, "don't agree", "same flags"),
    Sample("21", BEFORE, "ValueError: Non-MoE models do not support external data parallel mode.",
           CONFIG, "dense", "replicas"),
    Sample("22", BEFORE, "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an"
           " appropriate cached snapshot folder for the specified revision on the local disk and"
           " outgoing traffic has been disabled. To enable repo look-ups and downloads online, set"
           " 'HF_HUB_OFFLINE=0' as environment variable.", CONFIG, "isn't in the cache", "unset"),
    Sample("23", BEFORE, "huggingface_hub.errors.HFValidationError: Repo id must be in the form"
           " 'repo_name' or 'namespace/repo_name': '/no/such/model'. Use `repo_type` argument if"
           " needed.", CONFIG, "doesn't exist: /no/such/model", "`model`"),
    Sample("24", BEFORE, "OSError: nobody/nothing is not a local folder and is not a valid model"
           " identifier listed on 'https://huggingface.co/models'",
           CONFIG, "no such model: nobody/nothing", "HF_TOKEN"),
    Sample("24", BEFORE, "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (ID:"
           " x) Repository Not Found for url: https://huggingface.co/api/models/a/b.",
           CONFIG, "knows no such model"),
    Sample("25", BEFORE, "huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access"
           " gated repo for url https://huggingface.co/a/b/resolve/main/config.json.",
           CONFIG, "gated", "licence"),
    Sample("25", BEFORE, "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for"
           " url: https://huggingface.co/x", CONFIG, "token", "HF_TOKEN"),
    Sample("26", BEFORE, "OSError: We couldn't connect to 'https://huggingface.co' to load the"
           " files, and couldn't find them in the cached files.",
           Cause.NETWORK, "can't be reached", "HF_ENDPOINT"),
    Sample("26", BEFORE, "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests",
           Cause.NETWORK),
    Sample("27", BEFORE, "OSError: [Errno 28] No space left on device: '/hf/hub/models--a/blobs/x'",
           CONFIG, "disk is full: /hf/hub/models--a/blobs/x", "HF_HOME"),
    Sample("28", BEFORE, raised(
        f"RuntimeError: Insufficient space in {SHM} for ShmRingBuffer: 240 MiB required, 11 MiB"
        f" free. Increase {SHM} (e.g. --shm-size or --ipc=host)."),
        CRASH, "240 MiB are wanted, 11 MiB free", "--shm-size"),
    Sample("28", AFTER, died("Worker proc VllmWorker-0 died unexpectedly (exit code: -7), shutting"
                             " down executor."), Cause.CRASH, "full", "df -h"),
    Sample("29", BEFORE, raised("RuntimeError: Cannot find any model weights with `/m/empty`"),
           CONFIG, "no weights: /m/empty", "download"),
    Sample("30", BEFORE, raised(
        "safetensors_rust.SafetensorError: Error while deserializing header: header too large"),
        CONFIG, "corrupt, cut short, or only a Git LFS pointer: header too large", "git lfs pull"),
    Sample("30", BEFORE, raised(
        "OverflowError: cannot fit 'int' into an index-sized integer"), CONFIG, "corrupt"),
    Sample("30", BEFORE, raised(
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata,"
        " file not fully covered"), CONFIG, "incomplete metadata"),
    Sample("31", BEFORE, raised("RuntimeError: start (0) + length (512) exceeds dimension size"
                                " (256)."), CONFIG, "don't fit the model's config.json"),
    Sample("31", BEFORE, raised(
        "ValueError: There is no module or parameter named 'model.x' in Qwen3ForCausalLM."),
        CONFIG, "config.json", "quantization"),
    Sample("31", BEFORE, raised("RuntimeError: The size of tensor a (256) must match the size of"
                                " tensor b (128) at non-singleton dimension 0"), CONFIG),
    Sample("32", BEFORE, "pydantic_core._pydantic_core.ValidationError: 1 validation error for"
           " ModelConfig\n  Value error, Model architectures ['NopeForCausalLM'] are not supported"
           " for now. Supported architectures: dict_keys(['A'])",
           CONFIG, "architecture: NopeForCausalLM", "newer vLLM"),
    Sample("32", BEFORE, "ValueError: The checkpoint you are trying to load has model type `nope`"
           " but Transformers does not recognize this architecture.", CONFIG, "nope"),
    Sample("33", BEFORE, "ValueError: The repository a/b contains custom code which must be"
           " executed to correctly load the model.", CONFIG, "code of its own", "trust-remote"),
    Sample("34", BEFORE, "OSError: Can't load tokenizer for '/m'. If you were trying to load it",
           CONFIG, "tokenizer", "download"),
    Sample("34", BEFORE, """\
Traceback (most recent call last):
  File "/x/transformers/tokenization_utils_fast.py", line 99, in __init__
    tokens = data['added_tokens']
KeyError: 'added_tokens'
""", CONFIG, "tokenizer"),
    Sample("36", BEFORE, "Value error, User-specified max_model_len (100000) is greater than the"
           " derived max_model_len (max_position_embeddings=2048.0 or model_max_length=None in"
           " model's config.json).", CONFIG, "100000 is more than the model was made for, 2048",
           "set max-model-len to 2048 or less"),
    Sample("37", BEFORE, "Value error, Total number of attention heads (14) must be divisible by"
           " tensor parallel size (4).", CONFIG, "14 attention heads over 4 GPUs", "of 14"),
    Sample("37", BEFORE, "Value error, World size (8) is larger than the number of available GPUs"
           " (2) in this node. If this is", CONFIG, "8 of 2", "tensor-parallel"),
    Sample("38", BEFORE, "Value error, Unknown quantization method: nope. Must be one of ['awq'].",
           CONFIG, "no such quantization: nope;", "quantization"),
    Sample("38", BEFORE, raised("ValueError: Bfloat16 is only supported on GPUs with compute"
                                " capability of at least 8.0."), CONFIG, "", "half"),
    Sample("39", BEFORE, "usage: vllm serve [model_tag] [options]\nvllm serve: error: unrecognized"
           " arguments: --max-modle-len 512", CONFIG, "no such flag: --max-modle-len", "--help"),
    Sample("39", BEFORE, "vllm serve: error: argument --dtype: invalid choice: 'float7' (choose"
           " from 'auto', 'half')", CONFIG, "--dtype: invalid choice: 'float7'"),
    Sample("39", BEFORE, "pydantic_core._pydantic_core.ValidationError: 1 validation error for"
           " SchedulerConfig\n  Value error, max_num_batched_tokens (1) must be greater",
           CONFIG, "max_num_batched_tokens (1) must be greater"),
    Sample("40", BEFORE, raised("ValueError: Unsupported connector type: NopeConnector"),
           CONFIG, "connector: NopeConnector"),
    Sample("40", BEFORE, raised("RuntimeError: NIXL is not available"), CONFIG, "NIXL", "nixl"),
    Sample("41", BEFORE, raised("RuntimeError: NIXL compatibility hash mismatch. Local: a, remote"
                                " b"), CONFIG, "differ", "same model"),
    Sample("44", AFTER, died("TimeoutError: RPC call to execute_model timed out."),
           Cause.CRASH, "stopped answering in execute_model", "VLLM_EXECUTE_MODEL_TIMEOUT"),
    Sample("44", AFTER, died("TimeoutError"), Cause.CRASH, "stopped answering"),
    Sample("46", AFTER, died("Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting"
                             " down executor."), Cause.CRASH, "VllmWorker-0 was killed by SIGKILL"),
    Sample("47", AFTER, died("Worker proc VllmWorker-0 died unexpectedly (exit code: -11)"),
           Cause.CRASH, "native code crashed in VllmWorker-0"),
    Sample("47", BEFORE, '!!!!!!! Segfault encountered !!!!!!!\n  File "x", line 1', CRASH,
           "native code"),
    Sample("48", BEFORE, "TimeoutError: Timed out waiting for engine core processes to start. This"
           " is often caused by slow weight loading for large models. Waited 600s (configured by",
           Cause.START_TIMEOUT, "600 s", "VLLM_ENGINE_READY_TIMEOUT_S"),
    Sample("49", BEFORE, raised(
        "ValueError: Available memory on node 0 (10.29/11.34 GiB) on startup is less than desired"
        " CPU memory utilization (0.92, 10.43 GiB). On the CPU backend, the"),
        Cause.OOM_LOAD, "10.29 of 11.34 GiB, 10.43 GiB are wanted", "VLLM_CPU_KVCACHE_SPACE"),
    Sample("49", BEFORE, raised(
        "RuntimeError: Worker failed with error 'Available memory on node 0 (10.11/11.34 GiB) on kv"
        " cache allocation is less than requested memory for kv (186.26 GiB). Decrease it.', please"
        " check the stack trace above for the root cause", "EngineCore"),
        Cause.OOM_LOAD, "10.11 of 11.34 GiB, 186.26 GiB are wanted"),
    Sample("50", BEFORE, "Value error, Sleep mode is not supported on current platform.",
           CONFIG, "no sleep mode", "enable-sleep-mode"),
    Sample("51", BEFORE, raised("RuntimeError: Cannot re-initialize CUDA in forked subprocess. To"
                                " use CUDA with multiprocessing, you must use 'spawn'"),
           CONFIG, "bug of dynorch", "spawn"),
    Sample("52", BEFORE, """\
Traceback (most recent call last):
  File "<string>", line 1, in <module>
RuntimeError:
        An attempt has been made to start a new process before the
        current process has finished its bootstrapping phase.
""", CONFIG, "bug of dynorch"),
    Sample("53", AFTER, died("OSError: [Errno 24] Too many open files"), Cause.CRASH, "too few",
           "ulimit"),
    Sample("55", AFTER, """\
(EngineCore pid=803) Exception in thread Thread-4 (process_output_sockets):
(EngineCore pid=803) Traceback (most recent call last):
(EngineCore pid=803)   File "/usr/lib/python3.11/threading.py", line 1045, in _bootstrap_inner
(EngineCore pid=803) TypeError: Object of type <class 'numpy.float32'> is not serializable
""", Cause.CRASH, "output thread died", "report"),
]  # fmt: skip

SURVIVED = {
    "35": "ValueError: As of transformers v4.44, default chat template is no longer allowed, so you"
    " must provide a chat template",
    "42": "(Worker pid=812) ERROR 11-22 17:06:51 [base_worker.py:1354] NIXL transfer failure:"
    " handshake_setup_failed | Context: {'engine_id': 'x', 'remote_host': '127.0.0.1'}",
    "43": "(Worker pid=812) ERROR 11-22 17:06:51 [pull_worker.py:668] Potentially invalid KV blocks"
    " for unrecognized request x were retrieved by a decode worker. They may have expired.",
    "45": "(EngineCore pid=803) INFO 11-22 17:06:51 [shm_broadcast.py:109] No available shared"
    " memory broadcast block found in 60 seconds. This typically happens when",
    "54": "(MainProcess pid=79) ERROR 11-22 17:06:51 [serving.py:9] Loading lora x failed: No"
    " adapter found for /m/x",
}
"""What ends a request at most."""

NEAR_MISSES = [
    (
        "(Worker pid=812) WARNING 11-22 17:06:51 [x.py:256] Found ulimit of 1024 and failed"
        " to automatically increase with error x. This can cause errors like `OSError: [Errno"
        " 24] Too many open files`. Consider increasing with ulimit -n"
    ),
    "(EngineCore pid=803) INFO 11-22 17:06:51 [core.py:1] Free memory on device cuda:0 (70/80 GiB)",
    "(Worker pid=812) INFO 11-22 17:06:51 [x.py:1] again: ReadTimeout, Max retries exceeded",
    (
        "(MainProcess pid=79) WARNING 11-22 17:06:51 [x.py:1] port 8: Address already in use, try"
        " the next one"
    ),
    "NVRM: Xid (PCI:0000:41:00): 31, pid=1, MMU Fault",
    "NOTICE: the NCCL version is 2.27",
    "huggingface_hub.errors.LocalEntryNotFoundError: x",
    "zmq.error.ZMQError: Resource temporarily unavailable",
    "TimeoutError: a client's own",
    "TypeError: Object of type set is not serializable",
    "KeyError: 'added_tokens'",
    "RuntimeError: the estimated maximum model length is fine",
    "resource_tracker: There appear to be 5 leaked semaphore objects: No space left on device",
    "ValueError: invalid literal for int() with base 10: 'x'",
]
"""Words that look like a row's, and aren't."""
