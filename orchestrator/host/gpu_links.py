"""How a machine's GPUs are connected, and which NUMA node each is near, as the driver tells it.

What decides about a gang's speed is the slowest pair in it, so every pair is asked about: NVLinks
first, counted as `nvidia-smi topo -m` counts them, else the nearest thing that both hang on.
Nothing here is needed to start a worker. So every error means "unknown", and unknown GPUs are
placed by their indices as if they were all alike.
"""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any, Literal

import msgspec

from orchestrator.host import procfs

Connection = Literal["nvlink", "board", "switch", "switches", "bridge", "numa", "system"]
PCI_DEVICES = "/sys/bus/pci/devices"
ANCESTORS: dict[int, Connection] = {
    0: "board", 10: "switch", 20: "switches", 30: "bridge", 40: "numa", 50: "system",
}  # fmt: skip
"""NVML's common ancestors of two devices: one board, one PCIe switch, several, a host bridge, a
NUMA node, or only what joins the nodes."""
NVLINKS_MAX = 36
TO_SWITCH = 2
"""The other end of an NVLink is an NVSwitch (nvmlIntNvLinkDeviceType_t)."""
P2P_NVLINK, P2P_OK = 2, 0
NODE_SCOPE, NODE_WORDS = 0, 16
SWITCH = "switch"


class Link(msgspec.Struct, frozen=True):
    """What two GPUs, by UUID, have between them. `lanes`: how many NVLinks; 0: nobody knows."""

    a: str
    b: str
    by: Connection
    lanes: int = 0


def links(nvml: Any, handles: dict[str, Any]) -> list[Link]:
    """Tell of each pair of these devices what connects it; pairs of which nobody knows are absent.

    `handles`: the driver's, by UUID. `nvml`: its library, opened.
    """
    ask = _asker(nvml)
    buses = {_bus(ask, handle): uuid for uuid, handle in handles.items()}
    ends = {uuid: _nvlinks(ask, handle, buses) for uuid, handle in handles.items()}
    found = []
    for (a, one), (b, other) in combinations(handles.items(), 2):
        lanes = ends[a][b] or min(ends[a][SWITCH], ends[b][SWITCH])
        p2p = ask("nvmlDeviceGetP2PStatus", one, other, P2P_NVLINK)
        ancestor = ANCESTORS.get(ask("nvmlDeviceGetTopologyCommonAncestor", one, other))
        if lanes or p2p == P2P_OK:
            found.append(Link(a, b, "nvlink", lanes))
        elif ancestor is not None:
            found.append(Link(a, b, ancestor))
    return found


def numa(nvml: Any, handle: Any) -> int | None:
    """Return the NUMA node whose cores and memory are near a device; None when nobody knows.

    `nvmlDeviceGetNumaNodeId` is another thing: the node that is the device's own memory.
    """
    ask = _asker(nvml)
    domain, _, place = _bus(ask, handle).lower().partition(":")
    # NVML writes eight digits where the kernel writes four; -1 is a machine of one node.
    text = procfs.read(f"{PCI_DEVICES}/{domain[-4:]}:{place}/numa_node", 16) or b""
    if text.strip().isdigit():
        return int(text)
    words = ask("nvmlDeviceGetMemoryAffinity", handle, NODE_WORDS, NODE_SCOPE)
    mask = sum(int(word) << (64 * place) for place, word in enumerate(words or ()))
    return mask.bit_length() - 1 if mask.bit_count() == 1 else None


def _asker(nvml: Any) -> Callable[..., Any]:
    """Return a caller of the library's functions that answers None where the driver won't."""

    def ask(name: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, name)(*arguments)
        except (nvml.NVMLError, AttributeError):  # an old driver, or an old library
            return None

    return ask


def _bus(ask: Callable[..., Any], handle: Any) -> str:
    """Return a device's address on the PCI bus, like 00000000:17:00.0; empty when unknown."""
    info = ask("nvmlDeviceGetPciInfo", handle)
    return _text(info.busId) if info is not None else ""


def _nvlinks(ask: Callable[..., Any], handle: Any, buses: dict[str, str]) -> Counter[str]:
    """Count a device's NVLinks by the UUID at their other end, those to a switch as `SWITCH`."""
    found: Counter[str] = Counter()
    for link in range(NVLINKS_MAX):
        active = ask("nvmlDeviceGetNvLinkState", handle, link)
        if active is None:
            break  # there are no more, or none at all
        if not active:
            continue
        if ask("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link) == TO_SWITCH:
            found[SWITCH] += 1
            continue
        remote = ask("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
        uuid = buses.get(_text(remote.busId)) if remote is not None else None
        if uuid is not None:
            found[uuid] += 1
    return found


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
