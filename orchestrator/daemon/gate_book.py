"""What the GPU gate must know after its daemon: `gpus.json` in the run directory, for this boot.

Baselines and quarantines are of devices. Of replicas it is noted what was in use on their GPUs when
they were let through, which is asked when one of them is given up.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec

from orchestrator.core import gate
from orchestrator.daemon.deployments import write_atomically
from orchestrator.wire.ids import ReplicaId


class Kept(msgspec.Struct, frozen=True):
    """The file. `known`: by UUID; `before`: bytes in use, by replica and UUID."""

    boot: str
    known: dict[str, gate.Known] = {}
    before: dict[str, dict[str, int]] = {}


class GateBook:
    """The file as it is in memory. `trouble` is told of what couldn't be written."""

    def __init__(self, path: Path, boot: str, trouble: Callable[[str], None]) -> None:
        self._path = path
        self._kept = _read(path, boot)
        self._trouble = trouble

    @property
    def known(self) -> dict[str, gate.Known]:
        """What an earlier daemon learnt, or this one."""
        return self._kept.known

    def learn(self, known: dict[str, gate.Known]) -> None:
        """Write down what is known of devices now."""
        self._write(msgspec.structs.replace(self._kept, known=known))

    def before(self, replica: ReplicaId) -> dict[str, int]:
        """The bytes in use on each of its devices before its last start; empty if nobody knows."""
        return self._kept.before.get(str(replica), {})

    def let_through(
        self, used: Mapping[ReplicaId, dict[str, int]], here: Collection[ReplicaId]
    ) -> None:
        """Write down what was in use where these may start; only those in `here` are kept."""
        if not used:
            return
        before = self._kept.before | {str(replica): each for replica, each in used.items()}
        names = {str(replica) for replica in here}
        before = {name: each for name, each in before.items() if name in names}
        self._write(msgspec.structs.replace(self._kept, before=before))

    def _write(self, kept: Kept) -> None:
        self._kept = kept
        try:
            write_atomically(self._path, msgspec.json.encode(kept))
        except OSError as error:
            self._trouble(str(error))


def _read(path: Path, boot: str) -> Kept:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, msgspec.MsgspecError):
        return Kept(boot)
    return kept if kept.boot == boot else Kept(boot)
