"""The driver's own command, asked where its library can't be loaded; a stub of it on the PATH."""

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.host.gpu_provider import Driver
from orchestrator.host.gpus import Gpu, Memory, Mute, Nvml, User
from orchestrator.host.mig_text import MIB
from orchestrator.host.nvidia_smi import NvidiaSmi

STUB = Path(__file__).parents[1] / "nvidia_smi.sh"
TWO = "GPU-a,NVIDIA H100,81920,300,Disabled\nGPU-b,NVIDIA H100,81920,41984,Disabled\n"
A = Memory(81920 * MIB, 300 * MIB, 81620 * MIB)
B = Memory(81920 * MIB, 41984 * MIB, 39936 * MIB)


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The file that the stub believes."""
    file = tmp_path / "stub"
    file.write_text(TWO)
    (tmp_path / "bin").mkdir()
    shutil.copy(STUB, tmp_path / "bin" / "nvidia-smi")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SMI_STUB", str(file))
    return file


def test_it_says_what_nvml_would(told):
    smi = NvidiaSmi()
    assert smi.gpus() == [
        Gpu(0, "GPU-a", "NVIDIA H100", 81920 * MIB), Gpu(1, "GPU-b", "NVIDIA H100", 81920 * MIB)
    ]  # fmt: skip
    assert smi.read(["GPU-a", "GPU-b"]) == {"GPU-a": A, "GPU-b": B}
    assert smi.read(["GPU-b"]) == {"GPU-b": B}
    assert smi.read([]) == {}
    told.write_text(f"{TWO}apps,GPU-b,4711,41000\napps,GPU-b,4712,[N/A]\n")
    assert smi.users("GPU-b") == [User(4711, 41000 * MIB), User(4712, None)]
    assert smi.users("GPU-a") == []
    assert smi.minor("GPU-b") == 8


def test_one_that_is_lost_does_not_spoil_what_is_said_of_the_others(told):
    told.write_text(TWO.replace("300", "lost"))
    answers = NvidiaSmi().read(["GPU-a", "GPU-b"])
    assert answers["GPU-b"] == B
    assert answers["GPU-a"].lost
    assert "GPU is lost" in answers["GPU-a"].text


def test_a_device_that_is_not_there_is_not_listed(told):
    assert NvidiaSmi().read(["GPU-x"]) == {"GPU-x": Mute("isn't listed")}


LISTED = """\
GPU 0: NVIDIA H100 (UUID: GPU-a)
  MIG 3g.40gb     Device  0: (UUID: MIG-0a)
  MIG 1g.10gb     Device  1: (UUID: MIG-0b)
GPU 1: NVIDIA H100 (UUID: GPU-b)
"""
QUERIED = """\
<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
\t<driver_version>575.57.08</driver_version>
\t<attached_gpus>2</attached_gpus>
\t<gpu id="00000000:00:09.0">
\t\t<product_name>NVIDIA H100</product_name>
\t\t<mig_mode>
\t\t\t<current_mig>Enabled</current_mig>
\t\t</mig_mode>
\t\t<mig_devices>
\t\t\t<mig_device>
\t\t\t\t<index>0</index>
\t\t\t\t<gpu_instance_id>2</gpu_instance_id>
\t\t\t\t<compute_instance_id>0</compute_instance_id>
\t\t\t\t<fb_memory_usage>
\t\t\t\t\t<total>40448 MiB</total>
\t\t\t\t\t<reserved>0 MiB</reserved>
\t\t\t\t\t<used>298 MiB</used>
\t\t\t\t\t<free>40151 MiB</free>
\t\t\t\t</fb_memory_usage>
\t\t\t\t<bar1_memory_usage>
\t\t\t\t\t<total>65535 MiB</total>
\t\t\t\t</bar1_memory_usage>
\t\t\t</mig_device>
\t\t\t<mig_device>
\t\t\t\t<index>1</index>
\t\t\t\t<gpu_instance_id>9</gpu_instance_id>
\t\t\t\t<compute_instance_id>0</compute_instance_id>
\t\t\t\t<fb_memory_usage>
\t\t\t\t\t<total>9856 MiB</total>
\t\t\t\t\t<reserved>0 MiB</reserved>
\t\t\t\t\t<used>12 MiB</used>
\t\t\t\t\t<free>9844 MiB</free>
\t\t\t\t</fb_memory_usage>
\t\t\t</mig_device>
\t\t</mig_devices>
\t\t<uuid>GPU-a</uuid>
\t\t<fb_memory_usage>
\t\t\t<total>81559 MiB</total>
\t\t\t<used>N/A</used>
\t\t\t<free>N/A</free>
\t\t</fb_memory_usage>
\t\t<processes>
\t\t\t<process_info>
\t\t\t\t<gpu_instance_id>9</gpu_instance_id>
\t\t\t\t<compute_instance_id>0</compute_instance_id>
\t\t\t\t<pid>4711</pid>
\t\t\t\t<type>C</type>
\t\t\t\t<used_memory>N/A</used_memory>
\t\t\t</process_info>
\t\t</processes>
\t</gpu>
\t<gpu id="00000000:00:0A.0">
\t\t<mig_devices>
\t\t\tNone
\t\t</mig_devices>
\t\t<uuid>GPU-b</uuid>
\t</gpu>
</nvidia_smi_log>
"""
"""What a driver of that version prints, without what nobody reads."""


@pytest.fixture
def cut(told):
    """The first GPU is in MIG mode; `cut` writes what is told of its instances."""

    def write(listed: str, queried: str):
        told.write_text(TWO.replace("Disabled", "Enabled", 1).replace("300", "[N/A]", 1))
        told.with_suffix(".L").write_text(listed)
        told.with_suffix(".xml").write_text(queried)

    write(LISTED, QUERIED)
    return write


def test_a_gpu_that_is_cut_is_its_instances(cut):
    smi = NvidiaSmi()
    assert smi.gpus() == [
        Gpu(0, "MIG-0a", "NVIDIA H100 MIG 3g.40gb", 40448 * MIB),
        Gpu(0, "MIG-0b", "NVIDIA H100 MIG 1g.10gb", 9856 * MIB),
        Gpu(1, "GPU-b", "NVIDIA H100", 81920 * MIB),
    ]
    assert smi.read(["MIG-0b", "GPU-b", "MIG-0x"]) == {
        "MIG-0b": Memory(9856 * MIB, 12 * MIB, 9844 * MIB),
        "GPU-b": B,
        "MIG-0x": Mute("isn't listed"),
    }
    assert smi.users("MIG-0b") == [User(4711, None)]
    assert smi.users("MIG-0a") == smi.users("MIG-0x") == []


@pytest.mark.parametrize(
    ("listed", "queried", "said"),
    [
        (LISTED, QUERIED.replace(" MiB", ""), ""),
        (LISTED, QUERIED.replace("40448 MiB", "N/A"),
         "GPU 0: nvidia-smi doesn't tell how large its MIG instances are"),
        ("GPU 0: NVIDIA H100 (UUID: GPU-a)\n", QUERIED,
         "GPU 0 is in MIG mode, and nvidia-smi lists no instance of it"),
        (LISTED, "Driver/library version mismatch\n",
         "nvidia-smi: Driver/library version mismatch"),
    ],
)  # fmt: skip
def test_what_it_does_not_tell_of_a_gpu_that_is_cut_is_its_trouble(cut, listed, queried, said):
    cut(listed, queried)
    smi = NvidiaSmi()
    assert "GPU-a" not in {gpu.uuid for gpu in smi.gpus()}
    assert smi.trouble == said


def test_what_it_does_not_tell_of_an_instance_is_said_when_it_is_asked(cut):
    smi = NvidiaSmi()
    cut(LISTED, QUERIED.replace("40448 MiB", "N/A"))
    assert smi.read(["MIG-0a"]) == {"MIG-0a": Mute("nvidia-smi doesn't tell its memory")}
    cut(LISTED, "GPU is lost\n")
    assert smi.read(["MIG-0a"]) == {"MIG-0a": Mute("nvidia-smi: GPU is lost", lost=True)}
    assert smi.users("MIG-0a") == []


def test_one_that_hangs_is_given_up_and_ended(told):
    told.write_text("hang\n")
    smi = NvidiaSmi(timeout_s=0.1)
    answers = smi.read(["GPU-a", "GPU-b"])
    assert {answer.text for answer in answers.values()} == {"nvidia-smi: hasn't answered for 0.1 s"}
    assert not any(answer.lost for answer in answers.values())


def test_a_reaper_may_be_quicker(told, monkeypatch):
    """The daemon reaps every child: then the exit status is gone, and only the words count."""
    wait = os.waitpid

    def reaped(pid, flags):
        wait(pid, flags)
        raise ChildProcessError

    monkeypatch.setattr(os, "waitpid", reaped)
    assert NvidiaSmi().read(["GPU-a"]) == {"GPU-a": A}


class TestDriver:
    """Who is asked by default."""

    def test_the_command_is_asked_only_where_there_is_no_library(self, told, monkeypatch):
        driver = Driver()
        monkeypatch.setattr(Nvml, "open", absent)
        assert [gpu.uuid for gpu in driver.gpus()] == ["GPU-a", "GPU-b"]
        assert driver.read(["GPU-a"]) == {"GPU-a": A}
        monkeypatch.setattr(Nvml, "open", broken)
        assert driver.gpus() == []
        assert driver.read(["GPU-a"]) == {"GPU-a": Mute("NVML: a version mismatch")}

    def test_without_either_there_are_no_gpus(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(Nvml, "open", absent)
        assert Driver().gpus() == []
        assert Driver().read(["GPU-a"]) == {"GPU-a": Mute("no library")}


def absent(self) -> bool:
    self.absent, self.trouble = True, "no library"
    return False


def broken(self) -> bool:
    self.absent, self.trouble = False, "NVML: a version mismatch"
    return False
