"""MIG instances, as `nvidia-smi` tells of them: no one answer of it tells all.

`-L` has the name and UUID of each instance of each GPU, by number. `-q -x` has its memory by the
same number, and says of each process which instance it is in. Together they say what NVML would.
"""

import re

import msgspec

from orchestrator.host.gpus import Memory, User

MIB = 2**20
_GPU = re.compile(r"GPU \d+: (.+) \(UUID: (GPU-[^)]+)\)")
_PART = re.compile(r"\s+(MIG \S+)\s+Device\s+(\d+): \(UUID: (MIG-[^)]+)\)")


class Instance(msgspec.Struct, frozen=True):
    """One instance. `memory`: None where its sizes weren't told."""

    gpu: str
    name: str
    memory: Memory | None = None
    users: tuple[User, ...] = ()


def instances(listed: str, queried: str) -> dict[str, Instance]:
    """Return each instance by its UUID, from the answers to `-L` and `-q -x`."""
    sizes, within = _queried(queried)
    found: dict[str, Instance] = {}
    gpu = name = ""
    for line in listed.splitlines():
        if whole := _GPU.match(line):
            name, gpu = whole.groups()
        elif part := _PART.match(line):
            number, uuid = part[2], part[3]
            place, memory = sizes.get((gpu, number), ("", None))
            users = tuple(within.get((gpu, place), ()))
            found[uuid] = Instance(gpu, f"{name} {part[1]}", memory, users)
    return found


_Sizes = dict[tuple[str, str], tuple[str, Memory | None]]
_Users = dict[tuple[str, str], list[User]]


def _queried(said: str) -> tuple[_Sizes, _Users]:
    """By GPU: of each number its GPU instance and memory, and who is in each GPU instance."""
    sizes: _Sizes = {}
    users: _Users = {}
    for gpu in said.split("<gpu ")[1:]:
        (uuid, *_) = re.findall("<uuid>(GPU-[^<]+)<", gpu) or [""]
        for part in _each(gpu, "mig_device"):
            sizes[uuid, _one(part, "index")] = _one(part, "gpu_instance_id"), _memory(part)
        for process in _each(gpu, "process_info"):
            pid, place = _one(process, "pid"), _one(process, "gpu_instance_id")
            if pid.isdigit():
                user = User(int(pid), mib(_one(process, "used_memory")))
                users.setdefault((uuid, place), []).append(user)
    return sizes, users


def _memory(part: str) -> Memory | None:
    for used in _each(part, "fb_memory_usage"):
        total, taken, free = (mib(_one(used, each)) for each in ("total", "used", "free"))
        if total is not None and taken is not None and free is not None:
            return Memory(total, taken, free)
    return None


def _each(text: str, name: str) -> list[str]:
    return re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)


def _one(text: str, name: str) -> str:
    return next(iter(_each(text, name)), "").strip()


def mib(text: str) -> int | None:
    """Bytes of so many MiB, with or without the unit; None where it isn't a number."""
    number = text.removesuffix(" MiB")
    return int(number) * MIB if number.isascii() and number.isdigit() else None
