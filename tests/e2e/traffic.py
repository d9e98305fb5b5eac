"""Clients that ask one question after the other, plainly and streaming, and count what goes wrong.

They are quick enough to leave a real engine that loads beside them nothing of two cores; `pause_s`
between two questions leaves it some.
"""

import threading
from typing import Self

import openai

from tests.eventually import eventually

TOKENS = 12


class Traffic:
    """Asks from its `with` to the end of it. `failures`: one sentence for each."""

    def __init__(self, url: str, clients: int = 3, pause_s: float = 0.0) -> None:
        self.url = url
        self._pause_s = pause_s
        self.done = 0
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(bool(n % 2),)) for n in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, count: int = 10) -> None:
        """Wait until so many more were answered."""
        target = self.done + count
        eventually(lambda: self.done >= target or self.failures, within_s=60)

    def _ask(self, stream: bool) -> None:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        while not self._stop.wait(self._pause_s):
            try:
                self._once(client, stream)
                self.done += 1
            except (openai.OpenAIError, AssertionError) as error:
                self.failures.append(f"{'stream' if stream else 'post'}: {error!r}")

    @staticmethod
    def _once(client: openai.OpenAI, stream: bool) -> None:
        question = {
            "model": "tiny", "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": "hi"}], "extra_body": {"ignore_eos": True},
        }  # fmt: skip
        if not stream:
            answer = client.chat.completions.create(**question)
            assert answer.usage.completion_tokens == TOKENS
            return
        chunks = list(client.chat.completions.create(stream=True, **question))
        assert chunks[-1].choices[0].finish_reason == "length", chunks[-1]
