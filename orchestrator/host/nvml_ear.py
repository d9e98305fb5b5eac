"""NVML's subscription to critical errors of GPUs: see `xids` for who waits on it."""

import contextlib
import ctypes
import importlib
from collections.abc import Iterable
from typing import Any

from orchestrator.host.xids import Errors

TIMEOUT = 10
"""The code with which a wait ends in which nothing happened."""


class NvmlEar:
    """An event set, and a session with the driver that is its own. NVMLError if there is none."""

    def __init__(self, nvml: Any, uuids: Iterable[str]) -> None:
        self._nvml = nvml
        nvml.nvmlInit()
        self._set = nvml.nvmlEventSetCreate()
        self._of: dict[int | None, list[str]] = {}
        for uuid in uuids:
            with contextlib.suppress(nvml.NVMLError):  # old GPUs have no events
                self._register(uuid)

    def _register(self, uuid: str) -> None:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        if uuid.startswith("MIG-"):  # an instance has the errors of its GPU
            handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        if _address(handle) not in self._of:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._set)
        self._of.setdefault(_address(handle), []).append(uuid)

    def wait(self, timeout_s: float) -> Errors | str:
        """Return what happened, nothing when time is up; or why there will be nothing any more."""
        if not self._of:
            return "no GPU here tells of its errors"
        try:
            data = self._nvml.nvmlEventSetWait_v2(self._set, int(timeout_s * 1000))
        except self._nvml.NVMLError as error:
            return [] if getattr(error, "value", 0) == TIMEOUT else f"NVML: {error}"
        # By its handle: one that has fallen off the bus doesn't tell its UUID.
        return [(uuid, int(data.eventData)) for uuid in self._of.get(_address(data.device), [])]

    def close(self) -> None:
        """End the subscription, and the session."""
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlEventSetFree(self._set)
            self._nvml.nvmlShutdown()


def listen(uuids: Iterable[str]) -> NvmlEar | None:
    """Subscribe to the errors of these devices; None where nobody could tell."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        return NvmlEar(nvml, uuids)
    except nvml.NVMLError:
        return None


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
