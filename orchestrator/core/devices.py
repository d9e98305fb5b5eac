"""What is known of a GPU at one moment: its memory, who holds it, or why it doesn't answer.

Plain values between the host, which asks, and the gate, which judges. A device is its UUID;
`index` is only what people call it. Bytes are compared, pids are merely told: in a container the
driver's pids are another namespace's.
"""

import msgspec


class Device(msgspec.Struct, frozen=True):
    """A GPU. `index` is nvidia-smi's; -1 where nobody knows it."""

    uuid: str
    index: int = -1

    def __str__(self) -> str:
        short = self.uuid[:12]
        return f"GPU {self.index} ({short})" if self.index >= 0 else short


class Memory(msgspec.Struct, frozen=True):
    """What a device answered."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


class Trouble(msgspec.Struct, frozen=True):
    """Why a device didn't answer. `lost`: the driver says that the device itself is gone."""

    text: str
    lost: bool = False


Reading = Memory | Trouble


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds, or may hold, memory of a device.

    `used_bytes` is None where nobody can tell. `worker`: whose it is, if ours; `orphan`: of a life
    of ours that is over, so it is being ended.
    """

    pid: int
    command: str = ""
    user: str = ""
    used_bytes: int | None = None
    worker: str = ""
    orphan: bool = False
