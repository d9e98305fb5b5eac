"""Two collectives that vLLM's CPU communicator lacks, so that MoE ranks can run without a GPU.

A mixture-of-experts layer that is split over data-parallel ranks gathers every rank's tokens and
scatters the sums back, with a different number of tokens on each rank. vLLM has that for GPUs only.
This has it for the CPU, in the slowest way that is right: a broadcast from each rank, and a sum of
everything of which each rank keeps its part.

And a rest for NIXL: its agents have a thread that polls without a pause, which takes a whole core
from each engine. Where two engines have two cores, such threads hold the locks that a transfer
needs, and one that takes milliseconds has taken half a minute. Here they pause.

A plugin for tests, in a package of its own: dynorch doesn't contain it.
"""

from itertools import accumulate


def register() -> None:
    """Add them where they are missing; vLLM calls this in each of its processes."""
    from vllm.platforms import current_platform  # noqa: PLC0415  a plugin must be quick to import

    if not current_platform.is_cpu():
        return
    from vllm.distributed.device_communicators.cpu_communicator import (  # noqa: PLC0415
        CpuCommunicator,
    )

    for method in (all_gatherv, reduce_scatterv):
        if method.__name__ not in vars(CpuCommunicator):
            setattr(CpuCommunicator, method.__name__, method)
    let_nixl_rest()


PAUSE_US = 1000


def let_nixl_rest() -> None:
    """Let the thread of each agent pause between two looks, where `nixl` is installed."""
    try:
        from nixl_cu12 import _bindings as nixl  # noqa: PLC0415
    except ImportError:
        return
    whole = nixl.nixlAgentConfig
    if whole.__module__ == __name__:
        return  # we are a fork

    class Config(whole):
        """`nixl_agent` writes 0 into it, without asking anybody."""

        @property
        def pthrDelay(self) -> int:  # noqa: N802  NIXL's name
            return PAUSE_US

        @pthrDelay.setter
        def pthrDelay(self, _asked: int) -> None:  # noqa: N802
            whole.pthrDelay.fset(self, PAUSE_US)

    nixl.nixlAgentConfig = Config


def all_gatherv(self, input_, dim=0, sizes=None):
    """Every rank's rows below each other; `sizes` says how many each rank has."""
    assert dim == 0, "vLLM gathers tokens, which are the first dimension"
    if isinstance(input_, list):
        return [all_gatherv(self, each, dim, sizes) for each in input_]
    import torch  # noqa: PLC0415

    sizes = sizes or [input_.shape[0]] * self.world_size
    parts = [input_.new_empty((size, *input_.shape[1:])) for size in sizes]
    parts[self.rank_in_group] = input_.contiguous()
    for rank, part in enumerate(parts):
        torch.distributed.broadcast(part, self.ranks[rank], group=self.device_group)
    return torch.cat(parts)


def reduce_scatterv(self, input_, dim=-1, sizes=None):
    """The sum over all ranks, of which this one keeps its own rows."""
    import torch  # noqa: PLC0415

    dim %= input_.dim()
    whole = input_.movedim(dim, 0).clone(memory_format=torch.contiguous_format)
    sizes = sizes or [whole.shape[0] // self.world_size] * self.world_size
    torch.distributed.all_reduce(whole, group=self.device_group)
    end = list(accumulate(sizes))[self.rank_in_group]
    mine = whole[end - sizes[self.rank_in_group] : end]
    return mine.movedim(0, dim).contiguous()
