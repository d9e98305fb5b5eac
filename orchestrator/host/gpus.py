"""What the driver says about this machine's GPUs, through NVML.

NVML is asked when somebody wants to know, and not before: a machine without a driver, without the
library or without a GPU simply has none. Memory is in bytes; a device is known by its UUID, because
indices change with the environment. A GPU that is cut into MIG instances is those instances: the
whole of it can't be used.

Any call may hang for as long as the driver does; see `lane` for who makes them. Return codes are
NVML's (nvml.h).
"""

import importlib
import os
from collections.abc import Collection
from typing import Any

import msgspec

from orchestrator.host import gpu_links, nvml_ear
from orchestrator.host.gpu_links import Link
from orchestrator.host.xids import Ear

LOST = {6: "not found", 15: "GPU is lost", 16: "needs a reset", 999: "unknown error"}
"""Codes with which one device of a driver that works answers when it has fallen off the bus."""


NO_LIBRARY = {12, 13}
"""Codes of pynvml itself: libnvidia-ml.so isn't there, or lacks what is called."""


class Gpu(msgspec.Struct, frozen=True):
    """One device. `index` is NVML's, in the order of the PCI bus; a MIG instance has its GPU's.

    `numa`: the node whose cores are near, if anybody knows it.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    numa: int | None = None


class Memory(msgspec.Struct, frozen=True):
    """A device's memory at one moment."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


class Mute(msgspec.Struct, frozen=True):
    """Why a device doesn't answer; `lost`: because it is gone, as far as the driver knows."""

    text: str
    lost: bool = False


class User(msgspec.Struct, frozen=True):
    """A process that uses a device. In a container `pid` may be another namespace's."""

    pid: int
    used_bytes: int | None = None


class Nvml:
    """A session with the driver, which costs milliseconds to open: keep it while asking often."""

    pids_are_ours = False
    judges = True

    def __init__(self) -> None:
        self._nvml: Any = None
        self.absent = False
        self.trouble = ""

    def open(self) -> bool:
        """Load the library and the driver; False with `trouble` saying why there are no GPUs.

        `absent`: there is no library that could be asked.
        """
        if self._nvml is not None:
            return True
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            self.absent, self.trouble = True, "NVML's Python library isn't installed"
            return False
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.trouble = f"NVML: {error}"
            self.absent = getattr(error, "value", 0) in NO_LIBRARY
            return False
        self._nvml, self.absent = nvml, False
        return True

    def close(self) -> None:
        """End the session; the next question begins another."""
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                self.trouble = f"NVML: {error}"

    def gpus(self) -> list[Gpu]:
        """List the devices; one that doesn't answer is left out and named in `trouble`."""
        if not self.open():
            return []
        return [gpu for index in range(self._count()) for gpu in self._gpus(index)]

    def links(self) -> list[Link]:
        """Tell what connects each pair of whole GPUs, as far as it is known."""
        if not self.open():
            return []
        handles = {
            uuid: handle
            for index in range(self._count())
            for uuid, handle in self._handles(index)
            if uuid.startswith("GPU-")
        }
        return gpu_links.links(self._nvml, handles)

    def read(self, uuids: Collection[str]) -> dict[str, Memory | Mute]:
        """Return the memory of each device now, or why it can't be told."""
        if not self.open():
            return dict.fromkeys(uuids, Mute(self.trouble))
        answers = {uuid: self._read(uuid) for uuid in uuids}
        if not any(isinstance(answer, Memory) for answer in answers.values()):
            self.close()  # perhaps it is the session that doesn't work
        return answers

    def users(self, uuid: str) -> list[User]:
        """Return the processes that compute on a device; empty when the driver won't tell."""
        if not self.open():
            return []
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError as error:
            self.trouble = f"{uuid}: {error}"
            return []
        return [User(int(one.pid), one.usedGpuMemory) for one in found]

    def minor(self, uuid: str) -> int | None:
        """Return the N of /dev/nvidiaN; None when the driver won't tell."""
        if not self.open():
            return None
        nvml = self._nvml
        try:
            return int(nvml.nvmlDeviceGetMinorNumber(nvml.nvmlDeviceGetHandleByUUID(uuid)))
        except nvml.NVMLError as error:
            self.trouble = f"{uuid}: {error}"
            return None

    def listen(self, uuids: Collection[str]) -> Ear | None:
        """Subscribe to the errors of these devices, in a session of its own; for any thread."""
        return nvml_ear.listen(uuids)

    def _count(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            self.trouble = f"NVML: {error}"
            return 0

    def _read(self, uuid: str) -> Memory | Mute:
        nvml = self._nvml
        try:
            found = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError as error:
            return Mute(f"NVML: {error}", lost=getattr(error, "value", 0) in LOST)
        return Memory(int(found.total), int(found.used), int(found.free))

    def _gpus(self, index: int) -> list[Gpu]:
        """One GPU, or its MIG instances."""
        nvml, found = self._nvml, []
        for uuid, handle in self._handles(index):
            try:
                name = nvml.nvmlDeviceGetName(handle)
                total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
                near = gpu_links.numa(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
            except nvml.NVMLError as error:
                self.trouble = f"GPU {index}: {error}"
                return []
            # Old versions of the library answer in bytes.
            found.append(Gpu(index, uuid, os.fsdecode(name), total, near))
        return found

    def _handles(self, index: int) -> list[tuple[str, Any]]:
        """UUID and handle of one GPU, or of its MIG instances; none when it doesn't answer."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            parts = self._instances(handle)
            return [(os.fsdecode(nvml.nvmlDeviceGetUUID(each)), each) for each in parts or [handle]]
        except nvml.NVMLError as error:
            self.trouble = f"GPU {index}: {error}"
            return []

    def _instances(self, handle: Any) -> list[Any]:
        """Return the MIG instances of a GPU; empty where there are none."""
        nvml, found = self._nvml, []
        try:
            if not nvml.nvmlDeviceGetMigMode(handle)[0]:
                return []
            slots = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        except nvml.NVMLError:
            return []  # most GPUs can't be cut, and old drivers don't know the question
        for slot in range(slots):
            try:
                found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, slot))
            except nvml.NVMLError:
                continue  # an empty slot
        return found
