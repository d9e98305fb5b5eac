"""vLLM's general plugin of ours: for processes of the engine that were spawned, not forked.

vLLM calls every installed plugin in each of its processes, in every vLLM on the machine. So this
one does nothing at all, and imports nothing, unless a worker of ours has said in the environment
where to tell. Processes forked from a worker have the hooks already and don't need it; those it
does need are started with `VLLM_WORKER_MULTIPROC_METHOD = "spawn"`, or without a zygote.

A plugin that raises would take the engine down with it; what fails in here is left undone.
"""

import contextlib
import os

NAME = "dynorch"
"""Under which `pyproject.toml` registers it."""
ENV = "DYNORCH_TIDINGS"
"""`PID:STARTTIME:PIPE` of the host. Set by `tidings`, in a worker, while its engine lives."""


def register() -> None:
    """Tell the host what this process does, and end with it."""
    host, _, rest = os.environ.get(ENV, "").partition(":")
    started, _, pipe = rest.partition(":")
    if not pipe or int(host) == os.getpid():
        return
    from workers.vllm import guard, telling  # noqa: PLC0415  inert means: not even imported

    if telling.installed:
        return
    guard.start(int(host), int(started))
    with contextlib.suppress(OSError):
        fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        telling.Teller(fd, int(host)).install()
