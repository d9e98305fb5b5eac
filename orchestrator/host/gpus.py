"""Which GPUs this machine has.

NVML is asked when somebody wants to know, and not before: a machine without a driver, without the
library or without a GPU simply has none. Memory is in bytes; a device is known by its UUID, because
indices change with the environment.
"""

import importlib
import os
from typing import Any

import msgspec


class Gpu(msgspec.Struct, frozen=True):
    """One device. `index` is NVML's, in the order of the PCI bus."""

    index: int
    uuid: str
    name: str
    total_bytes: int


class Memory(msgspec.Struct, frozen=True):
    """A device's memory at one moment."""

    used_bytes: int
    free_bytes: int


class Inventory:
    """A session with NVML, which costs some milliseconds to open: keep it while asking often."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self.trouble = ""

    def open(self) -> bool:
        """Load the library and the driver; False with `trouble` saying why there are no GPUs."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            self.trouble = "NVML's Python library isn't installed"
            return False
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            self.trouble = f"NVML: {error}"
            return False
        self._nvml = nvml
        return True

    def close(self) -> None:
        """End the session."""
        if self._nvml is not None:
            nvml, self._nvml = self._nvml, None
            nvml.nvmlShutdown()

    def gpus(self) -> list[Gpu]:
        """List the devices; one that doesn't answer is left out and named in `trouble`."""
        assert self._nvml is not None, "not open"
        return [
            gpu for index in range(self._nvml.nvmlDeviceGetCount()) if (gpu := self._gpu(index))
        ]

    def memory(self, uuid: str) -> Memory | None:
        """Return a device's memory now; None with `trouble` when it doesn't answer."""
        assert self._nvml is not None, "not open"
        try:
            handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            found = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as error:
            self.trouble = f"{uuid}: {error}"
            return None
        return Memory(int(found.used), int(found.free))

    def _gpu(self, index: int) -> Gpu | None:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
            total = nvml.nvmlDeviceGetMemoryInfo(handle).total
        except nvml.NVMLError as error:
            self.trouble = f"GPU {index}: {error}"
            return None
        # Old versions of the library answer in bytes.
        return Gpu(index, os.fsdecode(uuid), os.fsdecode(name), int(total))


def list_gpus() -> list[Gpu]:
    """List this machine's GPUs; empty when there are none that we can see."""
    inventory = Inventory()
    if not inventory.open():
        return []
    try:
        return inventory.gpus()
    finally:
        inventory.close()
