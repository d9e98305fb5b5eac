"""Who is asked about GPUs: the driver, nobody, or a file.

`DYNORCH_GPU_PROVIDER` in the daemon's environment decides. `auto`, the default, is the driver:
through NVML, or through `nvidia-smi` where that library can't be loaded; either can be named.
`off` still finds GPUs, but nobody looks at their memory: every start goes ahead. `fake:FILE` is for
tests and CI, and the only way to have GPUs without having any: a JSON file, read again at each
question, says what the driver would have said.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from orchestrator.host.gpu_links import Link
from orchestrator.host.gpus import Gpu, Memory, Mute, Nvml, User
from orchestrator.host.nvidia_smi import NvidiaSmi
from orchestrator.host.xids import Ear

VARIABLE = "DYNORCH_GPU_PROVIDER"


class ProviderError(Exception):
    """The variable says something that can't be done."""


class Provider(Protocol):
    """What can be asked. Every question may block, and none raises.

    `judges`: its readings decide about starts. `pids_are_ours`: its pids are our namespace's.
    """

    judges: bool
    pids_are_ours: bool

    def gpus(self) -> list[Gpu]:
        """List the devices."""

    def links(self) -> list[Link]:
        """Tell what connects each pair of devices, as far as anybody knows."""

    def read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        """Return the memory of each device now, or why it can't be told."""

    def users(self, uuid: str) -> list[User]:
        """Return the processes that compute on a device."""

    def minor(self, uuid: str) -> int | None:
        """Return the N of /dev/nvidiaN, if anybody knows it."""

    def listen(self, uuids: frozenset[str]) -> Ear | None:
        """Subscribe to the errors of these devices; None where nobody tells of them."""

    def close(self) -> None:
        """Nobody has a question for now."""


class Driver:
    """NVML, or the driver's own command where its library can't be loaded."""

    judges = True
    pids_are_ours = False

    def __init__(self) -> None:
        self._nvml = Nvml()
        self._smi = NvidiaSmi()

    def _asked(self) -> Nvml | NvidiaSmi:
        """Look at each question: what can't be loaded today may be installed tomorrow."""
        if self._nvml.open() or not self._nvml.absent or not self._smi.is_here():
            return self._nvml
        return self._smi

    def gpus(self) -> list[Gpu]:
        """List the devices."""
        return self._asked().gpus()

    def links(self) -> list[Link]:
        """Tell what connects each pair of devices, as far as it is known."""
        return self._asked().links()

    def read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        """Return the memory of each device now, or why it can't be told."""
        return self._asked().read(uuids)

    def users(self, uuid: str) -> list[User]:
        """Return the processes that compute on a device."""
        return self._asked().users(uuid)

    def minor(self, uuid: str) -> int | None:
        """Return the N of /dev/nvidiaN, if anybody knows it."""
        return self._asked().minor(uuid)

    def listen(self, uuids: frozenset[str]) -> Ear | None:
        """Subscribe to the errors of these devices; only NVML tells of them."""
        return self._nvml.listen(uuids)

    def close(self) -> None:
        """End NVML's session, if there is one."""
        self._nvml.close()


class Off(Driver):
    """GPUs are found and never looked at again."""

    judges = False


class FakeGpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device of the file. `trouble`: it doesn't answer, and why; `lost`: for good."""

    uuid: str
    name: str = "Fake"
    total_bytes: int = 80 << 30
    used_bytes: int = 0
    numa: int | None = None
    users: tuple[User, ...] = ()
    trouble: str = ""
    lost: bool = False


class FakeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file, the devices in the order of their indices."""

    gpus: tuple[FakeGpu, ...] = ()
    links: tuple[Link, ...] = ()


class Fake:
    """Answers from a file."""

    judges = True
    pids_are_ours = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def _file(self) -> FakeFile | Mute:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=FakeFile)
        except (OSError, msgspec.MsgspecError) as error:
            return Mute(f"{self._path}: {error}")

    def _find(self, uuid: str) -> FakeGpu | Mute:
        file = self._file()
        if isinstance(file, Mute):
            return file
        for gpu in file.gpus:
            if gpu.uuid == uuid:
                return Mute(gpu.trouble, lost=gpu.lost) if gpu.trouble else gpu
        return Mute(f"{uuid} isn't in {self._path}", lost=True)

    def gpus(self) -> list[Gpu]:
        """List the devices of the file; none if it makes no sense."""
        file = self._file()
        if isinstance(file, Mute):
            return []
        return [
            Gpu(index, gpu.uuid, gpu.name, gpu.total_bytes, gpu.numa)
            for index, gpu in enumerate(file.gpus)
        ]

    def links(self) -> list[Link]:
        """Tell what the file says."""
        file = self._file()
        return [] if isinstance(file, Mute) else list(file.links)

    def read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        """Return what the file says now."""
        return {uuid: self._read(uuid) for uuid in uuids}

    def _read(self, uuid: str) -> Memory | Mute:
        gpu = self._find(uuid)
        if isinstance(gpu, Mute):
            return gpu
        return Memory(gpu.total_bytes, gpu.used_bytes, gpu.total_bytes - gpu.used_bytes)

    def users(self, uuid: str) -> list[User]:
        """Return the processes that the file names."""
        gpu = self._find(uuid)
        return [] if isinstance(gpu, Mute) else list(gpu.users)

    def minor(self, uuid: str) -> int | None:  # noqa: ARG002 - no device file belongs to it
        """Return nothing: no device file belongs to it."""
        return None

    def listen(self, uuids: frozenset[str]) -> None:
        """Return nothing: a file has no errors."""

    def close(self) -> None:
        """Nothing is open."""


def provider(environ: Mapping[str, str]) -> Provider:
    """Return whom this environment says to ask. ProviderError when it makes no sense."""
    text = environ.get(VARIABLE, "") or "auto"
    kind, _, path = text.partition(":")
    if kind == "fake" and path.startswith("/"):
        return Fake(Path(path))
    known: dict[str, Callable[[], Provider]] = {
        "auto": Driver, "nvml": Nvml, "nvidia-smi": NvidiaSmi, "off": Off,
    }  # fmt: skip
    if text in known:
        return known[text]()
    raise ProviderError(f"{VARIABLE}={text}: write {', '.join(known)}, or fake:/ABSOLUTE/FILE")
