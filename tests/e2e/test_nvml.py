"""The road to the real driver, on a stub of its library: inventory, placement, gate, lost GPUs."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.gpus import GIB, IDLE, comes_to, visible_gpus, waits
from tests.eventually import eventually

SOURCE = Path(__file__).with_name("nvml_stub.c")
COMMAND = Path(__file__).parents[1] / "nvidia_smi.sh"
LOST, MISMATCH = 15, 18

PINNED = """
name = "pin"
model = "m"
[gpu]
interval = "50ms"
[restart]
backoff-initial = "50ms"
[frontend]
port = {port}
[roles.worker]
gpus = 1
engine = "sim"
sim = { pinned = true }
[processes.other]
command = ["sleep", "3600"]
gpus = 1
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The directory of a libnvidia-ml.so.1 that believes a file."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NO C COMPILER: the road to the real NVML is not tested here")
    folder = tmp_path_factory.mktemp("nvml")
    name = "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}",
         "-o", str(folder / name), str(SOURCE)],
        check=True,
    )  # fmt: skip
    return folder


class Driver:
    """What the stub is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gpus = [[f"GPU-{index}-stub", "H100", 80 * GIB, IDLE, 0] for index in range(2)]
        self.more: list[str] = []
        self.write()

    def write(self) -> None:
        lines = [f"gpu {' '.join(map(str, gpu))}" for gpu in self.gpus] + self.more
        draft = self.path.with_suffix(".new")
        draft.write_text("\n".join(lines) + "\n")
        draft.rename(self.path)

    def set(self, index: int, used: float | None = None, code: int = 0) -> None:
        self.gpus[index][3:] = [IDLE if used is None else round(used * GIB), code]
        self.write()


@pytest.fixture
def driver(dynorch, library):
    one = Driver(dynorch.root / "stub")
    dynorch.env |= {"LD_LIBRARY_PATH": str(library), "NVML_STUB": str(one.path)}
    dynorch.env.pop("DYNORCH_GPU_PROVIDER", None)
    return one


def planned(dynorch, text: str) -> dict[str, dict]:
    plan = json.loads(dynorch("plan", dynorch.file(text), "--json").stdout)
    return {worker["id"]: worker for worker in plan["workers"]}


def test_what_the_driver_lists_is_what_workers_are_pinned_to(dynorch, driver):
    workers = planned(dynorch, PINNED)
    worker, other = workers["pin/worker-0.0"], workers["pin/other-0.0"]
    assert (worker["gpus"], worker["gpu_uuids"]) == ([0], ["GPU-0-stub"])
    for each, uuid in ((worker, "GPU-0-stub"), (other, "GPU-1-stub")):
        assert each["env"]["CUDA_VISIBLE_DEVICES"] == uuid
        assert each["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    free = planned(dynorch, PINNED.replace("pinned = true", "pinned = false"))
    assert free["pin/worker-0.0"]["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert free["pin/other-0.0"]["gpu_uuids"] == ["GPU-0-stub"]


def test_a_gpu_that_is_cut_is_its_instances(dynorch, driver):
    driver.more = [f"mig 0 MIG-{part} H100-1g {10 * GIB} 0" for part in "ab"]
    driver.write()
    workers = planned(dynorch, PINNED)
    assert workers["pin/worker-0.0"]["env"]["CUDA_VISIBLE_DEVICES"] == "MIG-a"
    assert workers["pin/other-0.0"]["env"]["CUDA_VISIBLE_DEVICES"] == "MIG-b"
    named = planned(dynorch, PINNED.replace("gpus = 1", 'gpus = ["MIG-b"]', 1))
    assert named["pin/worker-0.0"]["gpu_uuids"] == ["MIG-b"]
    whole = planned(dynorch, PINNED.replace("gpus = 1", "gpus = [1]", 1))
    assert whole["pin/worker-0.0"]["gpu_uuids"] == ["GPU-1-stub"]


FOUR = [f"GPU-{index}-stub" for index in range(4)]


def machine(driver, library):
    """What dynorch makes of the driver's answers, in a process of its own: NVML is loaded once."""
    code = (
        "import json, msgspec\n"
        "from orchestrator.daemon.machine import machine\n"
        "print(json.dumps(msgspec.to_builtins(machine())))\n"
    )
    env = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_STUB": str(driver.path)}
    env.pop("DYNORCH_GPU_PROVIDER", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_what_connects_each_pair_and_where_each_is_near(driver, library):
    driver.gpus = [[uuid, "A100", 80 * GIB, IDLE, 0] for uuid in FOUR]
    driver.more = [f"at {uuid} 0000FFF0:0{i}:00.0 {i % 2}" for i, uuid in enumerate(FOUR)]
    driver.more += [f"near {FOUR[0]} {FOUR[2]} 10", f"near {FOUR[2]} {FOUR[3]} 50"]
    driver.more += [f"nvlink {FOUR[1]} 0000FFF0:03:00.0 4", f"nvlink {FOUR[3]} 0000FFF0:01:00.0 4"]
    driver.write()
    found = machine(driver, library)
    assert [gpu["numa"] for gpu in found["gpus"]] == [0, 1, 0, 1]
    assert found["links"] == [
        {"a": FOUR[0], "b": FOUR[2], "by": "switch", "lanes": 0},
        {"a": FOUR[1], "b": FOUR[3], "by": "nvlink", "lanes": 4},
        {"a": FOUR[2], "b": FOUR[3], "by": "system", "lanes": 0},
    ]


def test_a_switch_connects_all_that_hang_on_it_and_silence_is_unknown(driver, library):
    assert machine(driver, library)["links"] == []
    driver.more = [f"nvlink GPU-{index}-stub switch {12 + index}" for index in range(2)]
    driver.write()
    found = machine(driver, library)
    assert found["links"] == [{"a": "GPU-0-stub", "b": "GPU-1-stub", "by": "nvlink", "lanes": 12}]
    assert [gpu["numa"] for gpu in found["gpus"]] == [None, None]


def test_whose_memory_it_is_that_makes_a_gpu_the_last_choice(dynorch, driver, library):
    driver.set(0, used=40.0)
    (held, _) = machine(driver, library)["gpus"]
    assert held["held"].startswith("40.0 GiB of it held by nobody that can be seen from here (the")


def test_memory_that_the_driver_keeps_delays_the_restart_and_a_lost_gpu_ends_it(dynorch, driver):
    dynorch("up", "-d", dynorch.file(PINNED))
    worker = dynorch.replica("worker")["workers"][0]
    assert worker["gpus"] == ["0"]
    assert visible_gpus(dynorch.pid("other")) == "GPU-1-stub"

    driver.set(0, used=61.5)
    os.kill(worker["pid"], signal.SIGKILL)
    waits(dynorch, "worker", "GPU 0 (GPU-0-stub) still holds 61.5 GiB, up to 1.1 GiB would count")
    driver.more = [f"init {MISMATCH}"]
    driver.set(0, code=MISMATCH)
    waits(dynorch, "worker", "doesn't answer: NVML: RM has detected an NVML/RM version mismatch")
    driver.more = []
    driver.set(0)
    back = comes_to(dynorch, "worker")
    assert back["incarnation"] == 2
    assert "SIGKILL" in back["reason"]

    driver.set(0, code=LOST)
    os.kill(dynorch.pid("worker"), signal.SIGKILL)
    failed = comes_to(dynorch, "worker", "failed")
    assert failed["cause"] == "gpu-lost"
    assert failed["reason"] == "GPU 0 (GPU-0-stub) is quarantined: NVML: GPU is lost"
    assert "dmesg" in failed["advice"]
    driver.set(0)
    dynorch("start", "pin/worker-0")
    comes_to(dynorch, "worker")
    assert dynorch.replica("other")["incarnation"] == 1


def test_an_error_of_a_gpu_is_heard_when_it_happens(dynorch, driver):
    dynorch("up", "-d", dynorch.file(PINNED))
    other = dynorch.pid("other")
    driver.more = ["xid GPU-1-stub 13"]
    driver.write()
    told = eventually(lambda: (text := dynorch("events").stdout) and "gpu-xid" in text and text, 30)
    assert "GPU 1 (GPU-1-stub): Xid 13 (graphics engine exception" in told
    driver.more += ["xid GPU-0-stub 79"]
    driver.write()
    failed = comes_to(dynorch, "worker", "failed")
    assert failed["cause"] == "gpu-lost"
    said = "GPU 0 (GPU-0-stub) reports Xid 79 (the GPU has fallen off the bus)"
    assert failed["reason"] == said
    assert "gpu-quarantined" in dynorch("events").stdout
    assert dynorch.pid("other") == other
    dynorch("start", "pin/worker-0")
    comes_to(dynorch, "worker")


def test_where_the_library_cannot_be_loaded_the_drivers_command_is_asked(dynorch):
    told = dynorch.root / "smi"
    free = "GPU-0-smi,H100,81920,300,Disabled\nGPU-1-smi,H100,81920,300,Disabled\n"
    told.write_text(free)
    (dynorch.root / "bin").mkdir()
    shutil.copy(COMMAND, dynorch.root / "bin" / "nvidia-smi")
    dynorch.env["PATH"] = f"{dynorch.root / 'bin'}:{dynorch.env['PATH']}"
    dynorch.env["SMI_STUB"] = str(told)
    dynorch.env.pop("DYNORCH_GPU_PROVIDER", None)
    dynorch("up", "-d", dynorch.file(PINNED))
    worker = dynorch.replica("worker")["workers"][0]
    assert worker["gpus"] == ["0"]
    told.write_text(free.replace("300", "62976", 1))
    os.kill(worker["pid"], signal.SIGKILL)
    waits(dynorch, "worker", "GPU 0 (GPU-0-smi) still holds 61.5 GiB")
    told.write_text(free)
    assert comes_to(dynorch, "worker")["incarnation"] == 2
