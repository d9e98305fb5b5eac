"""Who is asked about GPUs, in which thread, and who turns out to hold them."""

import asyncio
import json
import os
import subprocess
import sys
import threading

import pytest

from orchestrator.host import gpu_holders, tagged
from orchestrator.host.gpu_provider import Driver, Fake, Off, ProviderError, provider
from orchestrator.host.gpus import Gpu, Memory, Mute, Nvml, User
from orchestrator.host.lane import Lane, LateError
from orchestrator.host.nvidia_smi import NvidiaSmi
from orchestrator.host.title import entry
from tests.eventually import eventually

SLEEP = "import time; time.sleep(3600)"


class TestLane:
    def test_a_call_that_hangs_is_given_up_and_the_next_is_refused_until_it_returns(self):
        stop = threading.Event()

        async def story():
            lane = Lane("the driver")
            with pytest.raises(LateError, match=r"the driver hasn't answered for 0.01 s"):
                await lane.call(stop.wait, 0.01)
            before = threading.active_count()
            with pytest.raises(LateError, match="the driver hangs"):
                await lane.call(stop.wait, 10.0)
            assert threading.active_count() <= before
            stop.set()
            while True:
                try:
                    return await lane.call(lambda: 7, 10.0)
                except LateError:
                    await asyncio.sleep(0)

        assert asyncio.run(story()) == 7

    def test_calls_wait_for_each_other(self):
        async def story():
            lane = Lane("the driver")
            calls = (lane.call(lambda each=each: each, 10.0) for each in range(5))
            return await asyncio.gather(*calls)

        assert asyncio.run(story()) == list(range(5))

    def test_a_call_that_raises_is_a_bug_and_said_so(self, monkeypatch):
        heard = []
        monkeypatch.setattr(threading, "excepthook", heard.append)

        async def story():
            with pytest.raises(AssertionError, match="a call raised"):
                await Lane("the driver").call(lambda: 1 // 0, 10.0)

        asyncio.run(story())
        assert [one.exc_type for one in eventually(lambda: heard)] == [ZeroDivisionError]

    def test_a_process_can_end_although_its_driver_hangs(self):
        code = (
            "import asyncio, threading\n"
            "from orchestrator.host.lane import Lane, LateError\n"
            "async def main():\n"
            "    try:\n"
            "        await Lane('it').call(threading.Event().wait, 0.01)\n"
            "    except LateError:\n"
            "        print('late')\n"
            "asyncio.run(main())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout == "late\n"


class TestProvider:
    def test_the_environment_says_who_is_asked(self, tmp_path):
        assert type(provider({})) is Driver
        assert type(provider({"DYNORCH_GPU_PROVIDER": "nvidia-smi"})) is NvidiaSmi
        assert type(provider({"DYNORCH_GPU_PROVIDER": "nvml"})) is Nvml
        assert type(provider({"DYNORCH_GPU_PROVIDER": "off"})) is Off
        assert type(provider({"DYNORCH_GPU_PROVIDER": f"fake:{tmp_path}/g"})) is Fake
        for wrong in ("fake:", "fake:g.json", "cuda"):
            with pytest.raises(ProviderError, match="write auto, nvml, nvidia-smi, off, or"):
                provider({"DYNORCH_GPU_PROVIDER": wrong})

    def test_a_file_is_read_again_at_each_question(self, tmp_path):
        path = tmp_path / "gpus.json"
        asked = Fake(path)
        assert asked.gpus() == []
        assert "No such file" in asked.read(["GPU-a"])["GPU-a"].text
        path.write_text(
            json.dumps({"gpus": [{"uuid": "GPU-a", "total_bytes": 9, "used_bytes": 4}]})
        )
        assert asked.gpus() == [Gpu(0, "GPU-a", "Fake", 9)]
        assert asked.read(["GPU-a"]) == {"GPU-a": Memory(9, 4, 5)}
        assert asked.read(["GPU-b"])["GPU-b"].lost
        gpu = {"uuid": "GPU-a", "trouble": "gone", "lost": True}
        path.write_text(json.dumps({"gpus": [gpu]}))
        assert asked.read(["GPU-a"]) == {"GPU-a": Mute("gone", lost=True)}
        path.write_text('{"gpu": []}')
        assert "gpu" in asked.read(["GPU-a"])["GPU-a"].text


@pytest.fixture
def process():
    """A program with a secret on its command line."""
    argv = [sys.executable, "-c", SLEEP, "--token", "S3CRET"]
    one = subprocess.Popen(argv, env=os.environ | {"DYNORCH_TREE": "a/b-0.0#1/f00f"})
    yield one
    one.kill()
    one.wait()


class TestHolders:
    def test_a_holder_is_named_without_its_secrets(self, process):
        found = eventually(lambda: gpu_holders.look(User(process.pid, 5)))
        assert found.used_bytes == 5
        assert found.user
        assert "S3CRET" not in found.command
        assert SLEEP not in found.command
        assert gpu_holders.look(User(2**22 + 1)) is None

    @pytest.mark.parametrize(
        ("words", "shown"),
        [
            ("/usr/bin/python3 /home/x/train.py --lr 1", "python3 train.py"),
            (
                "python -m vllm.entrypoints.api_server --api-key k",
                "python vllm.entrypoints.api_server",
            ),
            ("VLLM::EngineCore", "VLLM::EngineCore"),
            ("trainer --password p", "trainer"),
        ],
    )
    def test_of_a_command_line_only_the_first_words_are_shown(self, monkeypatch, words, shown):
        line = words.replace(" ", "\0").encode()
        monkeypatch.setattr(gpu_holders.procfs, "cmdline", lambda pid: line)
        assert gpu_holders.command(1) == shown

    def test_who_has_the_device_open_holds_it_when_the_driver_names_nobody(self, tmp_path):
        device = tmp_path / "nvidia0"
        device.touch()
        code = f"import time; f = open({str(device)!r}); time.sleep(3600)"
        one = subprocess.Popen([sys.executable, "-c", code])
        try:
            assert eventually(lambda: gpu_holders.holding_open(str(device))) == [one.pid]
        finally:
            one.kill()
            one.wait()


class TestTags:
    def test_a_tag_tells_which_run_directory_it_is_from(self, tmp_path):
        tag = f"a/b-0.0#3/{tagged.make_nonce(tmp_path, 'a/b-0.0#3')}"
        assert tagged.is_from(tmp_path, tag)
        assert not tagged.is_from(tmp_path / "other", tag)
        assert not tagged.is_from(tmp_path, tag.replace("#3", "#4"))
        for nonsense in ("", "a", "a/b", "a/b-0.0#3/f00f", "-" * 160):
            assert not tagged.is_from(tmp_path, nonsense)

    def test_a_tree_is_ended_by_its_tag_alone(self, tmp_path):
        life = "a/b-0.0#3"
        tag = f"{life}/{tagged.make_nonce(tmp_path, life)}"
        name, _, value = entry(tag).decode().partition("=")
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}])"
        one = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {name: value})
        try:
            assert eventually(lambda: len(tagged.carrying(tag)) == 2)
            assert tagged.tag_of(one.pid) == tag
            kill = tagged.TagKill(tag)
            assert eventually(lambda: one.poll() is not None or not kill.run_pass())
            assert eventually(kill.run_pass)
        finally:
            one.kill()
            one.wait()
        assert not [each for each in tagged.carrying(tag) if each.alive]
