"""The GPUs of a machine, found or declared.

`plan --gpus 8xH100` declares a machine that isn't there, so that a topology can be planned on a
laptop and checked in CI.
"""

import re
from typing import Self

import msgspec

GIB = 2**30
KNOWN_BYTES = {
    "A10": 24 * GIB,
    "A10G": 24 * GIB,
    "A30": 24 * GIB,
    "A40": 48 * GIB,
    "A100": 80 * GIB,
    "A6000": 48 * GIB,
    "B200": 180 * GIB,
    "B300": 270 * GIB,
    "GB200": 186 * GIB,
    "H20": 96 * GIB,
    "H100": 80 * GIB,
    "H200": 141 * GIB,
    "L4": 24 * GIB,
    "L40": 48 * GIB,
    "L40S": 48 * GIB,
    "RTX4090": 24 * GIB,
    "RTX5090": 32 * GIB,
    "T4": 16 * GIB,
    "V100": 32 * GIB,
}
"""Memory by name, as sold; a real inventory brings the exact number."""
_DECLARED = re.compile(r"(\d{1,3})x([A-Za-z][A-Za-z0-9-]*)(?::(\d+)(GiB|GB))?")
GPUS_MAX = 256


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, or a MIG instance of one. `index` is nvidia-smi's, in PCI bus order."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    numa: int | None = None

    @property
    def is_part(self) -> bool:
        """A MIG instance: it has the index of the GPU that it is a part of."""
        return self.uuid.startswith("MIG-")


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All GPUs, by index. `cpu_engine`: the vLLM that is installed computes on the CPU."""

    gpus: tuple[Gpu, ...] = ()
    cpu_engine: bool = False

    @classmethod
    def declared(cls, text: str) -> Self:
        """Read "8xH100", "2xFOO:80GiB" or "4xA100,4xL40S"; ValueError with what would be right."""
        gpus: list[Gpu] = []
        for part in text.split(","):
            count, name, total_bytes = _declared(part.strip())
            for index in range(len(gpus), len(gpus) + count):
                uuid = f"GPU-declared-{index}"
                gpus.append(Gpu(index=index, uuid=uuid, name=name, total_bytes=total_bytes))
        if len(gpus) > GPUS_MAX:
            raise ValueError(f"{len(gpus)} GPUs in one machine; declare at most {GPUS_MAX}")
        return cls(gpus=tuple(gpus))

    def find(self, wanted: int | str) -> Gpu | None:
        """Return the GPU with this index or UUID."""
        for gpu in self.gpus:
            if wanted == gpu.uuid or (wanted == gpu.index and not gpu.is_part):
                return gpu
        return None

    def __str__(self) -> str:
        return ", ".join(f"{gpu.index} ({gpu.name})" for gpu in self.gpus) or "none"


def _declared(part: str) -> tuple[int, str, int]:
    match = _DECLARED.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} declares no GPUs; write 8xH100, or 8xNAME:80GiB")
    count, name = int(match[1]), match[2]
    if match[3]:
        unit = GIB if match[4] == "GiB" else 10**9
        return count, name, int(match[3]) * unit
    known = {key.lower(): key for key in KNOWN_BYTES}
    if name.lower() not in known:
        raise ValueError(f"the memory of {name!r} isn't known here; write {count}x{name}:80GiB")
    name = known[name.lower()]
    return count, name, KNOWN_BYTES[name]
