"""What hangs is found while its beats go on: unready first, then restarted, with the reason."""

import os
import signal

import pytest

from tests.e2e.conftest import zombie
from tests.e2e.test_up_down import client_of
from tests.eventually import eventually

HANGS = """
name = "agg"
model = "tiny"
restart = { backoff-initial = "50ms" }
[liveness]
beat = "100ms"
misses = 3
expire = "1500ms"
ask = "100ms"
unready = "500ms"
hang = "1s"
busy = "1500ms"
stall = "2s"
canary = "200ms"
canary-timeout = "300ms"
[frontend]
port = {port}
[roles.worker]
engine = "sim"
sim = { faults = [ FAULT ] }
"""
REASONS = {
    "hang": "event loop hasn't turned for",
    "engine-hang": "the engine hasn't answered for",
    "engine-stall": "no token has come for",
}


@pytest.mark.parametrize("fault", REASONS)
def test_a_hang_is_found_explained_and_mended(dynorch, fault):
    strike = f'{{ fault = "{fault}", after-requests = 1, times = 1 }}'
    dynorch("up", "-d", dynorch.file(HANGS.replace("FAULT", strike)))
    before = dynorch.pid("worker")
    client = client_of(dynorch)
    # The only worker hangs with it and is killed; the request waits for the next life.
    answer = client.completions.create(model="tiny", prompt="x", max_tokens=4, timeout=60)
    assert answer.usage.completion_tokens == 4

    def back():
        replica = dynorch.replica("worker")
        assert (replica["phase"], replica["restarts"]) == ("ready", 1)
        return replica

    replica = eventually(back, within_s=30)
    assert replica["cause"] == "unhealthy"
    assert REASONS[fault] in replica["reason"]
    assert zombie(before)


def test_an_idle_worker_is_left_alone_and_a_stopped_one_is_not(dynorch):
    dynorch("up", "-d", dynorch.file(HANGS.replace("FAULT", "")))
    before = dynorch.replica("worker")["workers"][0]
    since = dynorch.status()["daemon"]["uptime_s"]
    # Dozens of round trips and ten canaries, which nobody complains of and nothing counts.
    eventually(lambda: dynorch.status()["daemon"]["uptime_s"] > since + 2, within_s=20)
    assert dynorch.replica("worker")["restarts"] == 0
    # A beat may fall between a canary's token and its being taken off again.
    eventually(lambda: dynorch.replica("worker")["workers"][0] == before)
    os.kill(before["pid"], signal.SIGSTOP)
    eventually(lambda: dynorch.replica("worker")["restarts"] == 1, within_s=30)
    reason = dynorch.replica("worker")["reason"]
    assert f"(pid {before['pid']}, which is stopped) sent no heartbeat" in reason
    assert zombie(before["pid"])
    eventually(lambda: dynorch.topology()["health"] == "ready", within_s=30)
