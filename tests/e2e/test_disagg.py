"""Disaggregated serving in whole: its answers are those of an aggregated worker, whatever dies."""

import os
import signal
import threading
import time

import pytest

from tests.e2e.disagg import Pair, prompt
from tests.eventually import eventually

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "tell me of the sea, and of those who cross it"}]
SPLIT = [
    (CHAT, {"messages": HI, "max_tokens": 12}),
    (CHAT, {"messages": HI, "max_tokens": 12, "stream": True}),
    (CHAT, {"messages": HI, "max_completion_tokens": 5, "stream": True,
            "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": HI, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}),
    (COMPLETIONS, {"prompt": "once upon a time", "max_tokens": 20, "min_tokens": 9}),
    (COMPLETIONS, {"prompt": "x" * 700, "max_tokens": 5, "logprobs": 2}),
    (COMPLETIONS, {"prompt": [5, 6, 7, 8] * 30, "max_tokens": 5, "return_token_ids": True}),
    (COMPLETIONS, {"prompt": ["just one"], "max_tokens": 7, "stop": ["a"]}),
]  # fmt: skip
WHOLE = [
    (COMPLETIONS, {"prompt": ["one", "two", "three"], "max_tokens": 5}),
    (COMPLETIONS, {"prompt": ["one", "two"], "max_tokens": 5, "stream": True}),
    (COMPLETIONS, {"prompt": "said again", "max_tokens": 5, "echo": True}),
    (CHAT, {"messages": HI, "max_tokens": 6, "n": 3, "seed": 1}),
]


def test_every_answer_is_that_of_an_aggregated_worker(dynorch):
    pair = Pair(dynorch, prefills=2, decodes=2)
    for path, body in SPLIT + WHOLE:
        asked = {"model": "tiny", "temperature": 0} | body
        before = pair.used()
        answer = pair.ask(path, asked)
        assert answer.status == 200
        assert answer.plain == pair.expected(path, asked), body
        assert "x-dynorch-degraded" not in answer.headers
        assert pair.used() - before == ((path, body) in SPLIT)


def test_a_request_that_is_wrong_is_told_so_in_the_same_words(dynorch):
    pair = Pair(dynorch)
    for wrong in ({"prompt": "x", "max_tokens": 5000}, {"prompt": "y" * 5000}, {"prompt": []}):
        body = {"model": "tiny"} | wrong
        answer = pair.ask(COMPLETIONS, body)
        assert answer.status == 400
        with pytest.raises(AssertionError) as told:
            pair.expected(COMPLETIONS, body)
        assert answer.plain["error"]["message"] in str(told.value)


def test_a_chat_whose_template_prints_another_date_in_each_stage(dynorch):
    """It is midnight between them: decode must go on from the tokens that prefill has read."""
    pair = Pair(dynorch, decode='today = "1 January"', today="31 December")
    for number, more in enumerate(({}, {"stream": True}, {"return_token_ids": True}), start=1):
        body = {"model": "tiny", "messages": HI, "max_tokens": 12, **more}
        answer = pair.ask(CHAT, body)
        assert (answer.status, answer.plain) == (200, pair.expected(CHAT, body))
        assert pair.used() == number
    dynorch("stop", "dg/prefill")
    alone = pair.ask(CHAT, body)
    assert alone.status == 200
    assert "x-dynorch-degraded" in alone.headers
    assert alone.plain != pair.expected(CHAT, body)


@pytest.fixture(params=["recompute", "fail"])
def pair(dynorch, request):
    """One of each, transfers so slow that there is time to kill in them, and few blocks."""
    kv = f'on-failure = "{request.param}"'
    return Pair(dynorch, kv=kv, decode="transfer-rate = 300")


class Frozen:
    """A decode worker that is stopped while a request with its ticket waits in its socket."""

    def __init__(self, pair: Pair, body: dict) -> None:
        self.pid = pair.pid("decode")
        before = pair.used()
        os.kill(self.pid, signal.SIGSTOP)
        self.answer = pair.later(COMPLETIONS, body)
        eventually(lambda: pair.used() == before + 1)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


def test_prefill_dies_before_the_transfer(pair):
    expected = pair.expected(COMPLETIONS, prompt(1))
    frozen = Frozen(pair, prompt(1))
    os.kill(pair.pid("prefill"), signal.SIGKILL)
    frozen.thaw()
    answer = frozen.answer.came()
    assert (answer.status, answer.plain) == (200, expected)


def test_prefill_dies_before_the_transfer_and_is_back_on_the_same_port(pair):
    expected = pair.expected(COMPLETIONS, prompt(2))
    frozen = Frozen(pair, prompt(2))
    life = pair.life("prefill")
    os.kill(pair.pid("prefill"), signal.SIGKILL)
    eventually(lambda: pair.life("prefill") > life, within_s=20)
    eventually(lambda: pair.routable("prefill") == 1, within_s=20)
    # The new life lends blocks of the same numbers to others.
    others = [pair.later(COMPLETIONS, prompt(100 + number)) for number in range(3)]
    eventually(lambda: pair.used() >= 4)
    frozen.thaw()
    answer = frozen.answer.came()
    assert (answer.status, answer.plain) == (200, expected)
    for number, one in enumerate(others):
        assert one.came().plain == pair.expected(COMPLETIONS, prompt(100 + number))


def test_prefill_dies_during_the_transfer(pair):
    body, pid = prompt(3, words=60), pair.pid("prefill")
    expected, before = pair.expected(COMPLETIONS, body), pair.used()
    later = pair.later(COMPLETIONS, body)
    eventually(lambda: pair.used() == before + 1)
    os.kill(pid, signal.SIGKILL)
    answer = later.came()
    assert (answer.status, answer.plain) == (200, expected)


def test_prefill_dies_after_the_transfer(pair):
    body, pid = prompt(4) | {"max_tokens": 200, "stream": True}, pair.pid("prefill")
    expected = pair.expected(COMPLETIONS, body)
    later = pair.later(COMPLETIONS, body)
    eventually(later.first.is_set)
    os.kill(pid, signal.SIGKILL)
    answer = later.came()
    assert (answer.status, answer.plain) == (200, expected)


def test_prefill_dies_while_it_reads(dynorch):
    pair = Pair(dynorch)
    expected = pair.expected(COMPLETIONS, prompt(5))
    pid = pair.pid("prefill")
    os.kill(pid, signal.SIGSTOP)
    later = pair.later(COMPLETIONS, prompt(5))
    eventually(lambda: pair.metric("dynorch_frontend_inflight_requests") == 1)
    os.kill(pid, signal.SIGKILL)
    answer = later.came()
    assert (answer.status, answer.plain) == (200, expected)


def test_the_only_decode_dies(pair):
    """Before, in and after the transfer: the request waits for its next life."""
    for number, frozen in ((6, True), (7, False)):
        body = prompt(number, words=60)
        life, pid, before = pair.life("decode"), pair.pid("decode"), pair.used()
        if frozen:
            later = Frozen(pair, body).answer
        else:
            later = pair.later(COMPLETIONS, body)
            eventually(lambda before=before: pair.used() == before + 1)
        os.kill(pid, signal.SIGKILL)
        answer = later.came()
        assert answer.status == 200
        assert answer.plain == pair.expected(COMPLETIONS, body)
        pair.ready("decode", life=life + 1)


def test_both_die_at_once(pair):
    life, body = pair.life("decode"), prompt(8, words=60)
    pids = [pair.pid("prefill"), pair.pid("decode")]
    before = pair.used()
    later = pair.later(COMPLETIONS, body)
    eventually(lambda: pair.used() == before + 1)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    late = later.came()
    assert (late.status, late.plain) == (200, pair.expected(COMPLETIONS, body))
    pair.ready("decode", life=life + 1)
    pair.ready("prefill", life=2)
    answer = pair.ask(COMPLETIONS, body)
    assert answer.plain == pair.expected(COMPLETIONS, body)
    assert "x-dynorch-prefill" in answer.headers


def test_another_decode_takes_over_with_a_ticket_of_its_own(dynorch):
    pair = Pair(dynorch, decodes=2, decode="transfer-rate = 100")
    body = prompt(9, words=60)
    pids = [pair.pid("decode", index) for index in range(2)]
    expected, before = pair.expected(COMPLETIONS, body), pair.used()
    later = pair.later(COMPLETIONS, body)
    eventually(lambda: pair.used() == before + 1)
    # Whichever has it: the other one is killed only once it has taken over, or never.
    os.kill(pids[0], signal.SIGKILL)
    pair.ready("decode", 0, 2)
    os.kill(pids[1], signal.SIGKILL)
    answer = later.came()
    assert (answer.status, answer.plain) == (200, expected)


def test_a_lease_that_ended_before_decode_began_is_never_used(dynorch):
    """What vLLM alone gets wrong: the blocks are overwritten by then."""
    pair = Pair(dynorch, kv='lease = "1s"')
    expected = pair.expected(COMPLETIONS, prompt(10))
    frozen = Frozen(pair, prompt(10))
    asked_at = time.monotonic()
    others = [pair.later(COMPLETIONS, prompt(200 + number, words=60)) for number in range(6)]
    eventually(lambda: pair.used() >= 7)
    eventually(lambda: time.monotonic() > asked_at + 1.5)
    frozen.thaw()
    answer = frozen.answer.came()
    assert (answer.status, answer.plain) == (200, expected)
    for number, one in enumerate(others):
        assert one.came().plain == pair.expected(COMPLETIONS, prompt(200 + number, words=60))


def test_without_prefill_it_is_degraded_and_comes_back(dynorch):
    pair = Pair(dynorch)
    dynorch("stop", "dg/prefill")
    answer = pair.ask(COMPLETIONS, prompt(11))
    assert (answer.status, answer.plain) == (200, pair.expected(COMPLETIONS, prompt(11)))
    assert answer.headers["x-dynorch-degraded"] == "no prefill worker"
    status = dynorch.topology("dg")
    assert status["health"] == "degraded"
    assert "so decode reads prompts itself: dg/prefill-0 is stopped" in status["reason"]
    dynorch("start", "dg/prefill")
    assert dynorch.topology("dg")["health"] == "ready"
    answer = pair.ask(COMPLETIONS, prompt(12))
    assert "x-dynorch-prefill" in answer.headers


def test_enforced_there_is_no_answer_without_prefill(dynorch):
    pair = Pair(dynorch, kv="enforce = true")
    assert "x-dynorch-prefill" in pair.ask(COMPLETIONS, prompt(13)).headers
    dynorch("stop", "dg/prefill")
    answer = pair.ask(COMPLETIONS, prompt(14))
    assert answer.status == 503
    assert "dg/prefill-0" in answer.text


class Load:
    """Clients that ask without a pause and compare every answer with what it must be."""

    def __init__(self, pair: Pair, clients: int = 6) -> None:
        self.bodies = [prompt(300 + number) for number in range(12)]
        self.expected = [pair.expected(COMPLETIONS, body) for body in self.bodies]
        self.pair = pair
        self.wrong: list[str] = []
        self.done = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_error):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def go_on(self, count: int = 30) -> None:
        target = self.done + count
        eventually(lambda: self.done >= target or self.wrong, within_s=60)
        assert not self.wrong

    def run(self, number: int) -> None:
        while not self.stop.is_set():
            number = (number + 1) % len(self.bodies)
            try:
                answer = self.pair.ask(COMPLETIONS, self.bodies[number])
            except OSError as error:
                self.wrong.append(repr(error))
                return
            if answer.status != 200 or answer.plain != self.expected[number]:
                self.wrong.append(f"{answer.status} {answer.text}")
            self.done += 1


def test_kill_of_any_worker_or_of_the_daemon_loses_no_request_without_a_byte(dynorch):
    pair = Pair(dynorch, prefills=2, decodes=2)
    with Load(pair) as load:
        for role in ("prefill", "decode"):
            for index in range(2):
                life = pair.life(role, index)
                os.kill(pair.pid(role, index), signal.SIGKILL)
                load.go_on()
                pair.ready(role, index, life + 1)
                load.go_on()
        dynorch.kill_daemon()
        load.go_on()
    assert load.wrong == []
