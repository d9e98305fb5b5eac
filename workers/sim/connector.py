"""The simulated NixlConnector of a prefill or decode worker: a lender and a fetcher.

Both kinds of worker have both, as with vLLM: the kind says what is asked of a worker, not what it
could do. The engine's id is new in each life, which is what makes a ticket of the last one fail.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from orchestrator import __version__
from orchestrator.wire.config import WorkerConfig
from workers.sim import side_channel as wire
from workers.sim.faults import Faults
from workers.sim.fetcher import Fetcher
from workers.sim.lender import Lender
from workers.sim.options import KvTransfer, Options
from workers.sim.sequence import Sequence
from workers.sim.stepper import Stepper
from workers.sim.ticket import Ticket, Wish, written
from workers.sim.transfer_figures import TransferFigures

SIDE_CHANNEL = "side-channel"
"""The port's name in `WorkerConfig.ports`."""


class Connector:
    """What the batch asks for, see `stepper.Connector`; and who else may ask for blocks."""

    def __init__(
        self,
        *,
        config: WorkerConfig,
        options: Options,
        stepper: Stepper,
        faults: Faults,
        registry: CollectorRegistry,
        die: Callable[[str], None],
    ) -> None:
        transfer = options.kv_transfer or KvTransfer()
        member = f"_dp{config.gang.member}" if config.gang is not None else ""
        # The model's name as it was given is in it, as with vLLM: two names don't go together.
        compatibility = f"sim-{__version__}-{config.model}-{options.block_size}"
        self._agent = wire.Agent(f"{uuid.uuid4()}{member}", compatibility)
        self._blocks = stepper.blocks
        self._port = config.ports.get(SIDE_CHANNEL, 0)
        figures = TransferFigures(registry, config.model)
        self._lender = Lender(self._agent, stepper.blocks, transfer.lease, figures)
        self._fetcher = Fetcher(self._agent, transfer.lease, options.transfer_rate, figures, die)
        self._lender.faults = self._fetcher.faults = faults
        self._lender.freed = stepper.wake
        self._fetcher.done = stepper.fetched

    async def wait_fetched(self) -> None:
        """Return when nothing is kept for others any more."""
        await self._lender.empty.wait()

    async def listen(self) -> None:
        """Open the side channel; never returns if it can't be opened, as with vLLM."""
        try:
            await self._lender.listen(self._port)
        except OSError as error:
            # There the thread dies and the engine waits for it for ever, with these last words.
            where = f"tcp://{wire.HOST}:{self._port}"
            sys.stderr.write(
                "Exception in thread nixl_handshake_listener:\n"
                "Traceback (most recent call last):\n"
                '  File "base_scheduler.py", line 337, in _nixl_handshake_listener\n'
                f"zmq.error.ZMQError: {os.strerror(error.errno or 0)} (addr='{where}')\n"
            )
            sys.stderr.flush()
            await asyncio.Event().wait()

    async def close(self) -> None:
        """Hang up on everybody."""
        self._fetcher.close()
        await self._lender.close()

    def queued(self, sequence: Sequence) -> None:
        """Remind its engine of a sequence."""
        self._fetcher.wait(sequence)

    def fetch(self, sequence: Sequence) -> None:
        """Begin to fetch."""
        self._fetcher.fetch(sequence)

    def dropped(self, sequence: Sequence) -> None:
        """Let others free what nobody wants here any more."""
        self._fetcher.drop(sequence)

    def rejected(self, wish: Wish | None) -> None:
        """Do the same for a request that was never a sequence."""
        self._fetcher.reject(wish)

    def lend(self, sequence: Sequence) -> None:
        """Keep the blocks of what was computed: the prompt, and all that was said but the last."""
        computed = len(sequence.prompt) + sequence.generated - 1
        more = self._blocks.needed(computed) - len(sequence.blocks)
        taken = sequence.blocks + self._blocks.take(more)
        self._lender.keep(sequence.name, taken)
        sequence.blocks = []
        sequence.promised -= more
        sequence.lent = self._written(sequence, taken, computed)

    def _written(self, sequence: Sequence, taken: list[int], computed: int) -> dict[str, Any]:
        ticket = Ticket(self._agent.engine, sequence.name, wire.HOST, self._lender.port, taken)
        return written(ticket, computed)
