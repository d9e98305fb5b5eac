"""The driver's own command, asked where its library can't be loaded; a stub of it on the PATH."""

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.host.gpu_provider import Driver
from orchestrator.host.gpus import Gpu, Memory, Mute, Nvml, User
from orchestrator.host.nvidia_smi import MIB, NvidiaSmi

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


def test_a_device_that_is_not_there_is_lost_and_one_that_is_cut_is_left_out(told):
    smi = NvidiaSmi()
    assert smi.read(["GPU-x"]) == {"GPU-x": Mute("isn't listed")}
    told.write_text(TWO.replace("Disabled", "Enabled", 1))
    assert [gpu.uuid for gpu in smi.gpus()] == ["GPU-b"]
    assert "GPU 0 is cut into MIG instances" in smi.trouble


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
