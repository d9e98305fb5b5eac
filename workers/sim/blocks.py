"""The KV memory: numbered blocks, how many are promised to whom, and what is written in them.

A real block follows from every token up to its own; ours holds the tokens, and whoever goes on
from a list of blocks hashes what it finds there. So somebody else's block, or one that was written
over, gives another answer, and nobody is told: exactly as with real keys and values.

Free blocks stand in a queue, and the one that is free for longest is taken first. So what was given
back keeps its content for a while, and for how long follows from what is asked and nothing else.
What a prompt fills is taken by number. What may yet be generated is only promised, as a count:
nobody reads it but the sequence itself, which knows what it said.
"""

from collections import deque
from collections.abc import Sequence

Block = Sequence[int]
"""Tokens of one block, the last of a prompt's perhaps fewer than fit."""


class Blocks:
    """`count` blocks of `size` tokens, numbered from 1. `free`: neither taken nor promised."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.free = count
        self.size = size
        self._queue = deque(range(1, count + 1))
        self._written: list[Block] = [()] * (count + 1)

    def needed(self, tokens: int) -> int:
        """Count the blocks that so many tokens fill."""
        return -(-tokens // self.size)

    def promise(self, count: int) -> bool:
        """Set so many aside; False when there aren't."""
        if count > self.free:
            return False
        self.free -= count
        return True

    def take(self, count: int) -> list[int]:
        """Turn so many that were promised into numbers. What was in them is gone."""
        assert self.free + count <= len(self._queue), "taken without a promise"
        taken = [self._queue.popleft() for _ in range(count)]
        for number in taken:
            self._written[number] = ()
        return taken

    def give_back(self, taken: list[int], promised: int = 0) -> None:
        """Free blocks, and those that were promised and never taken."""
        self._queue.extend(taken)
        self.free += len(taken) + promised
        assert self.free <= len(self._queue) <= self.count, "given back twice"

    def write(self, taken: list[int], tokens: list[int]) -> None:
        """Fill blocks with a prompt."""
        size = self.size
        for place, number in enumerate(taken):
            self._written[number] = tokens[place * size : (place + 1) * size]

    def copy(self, taken: list[int], contents: list[Block]) -> None:
        """Fill blocks with what was read from others."""
        assert len(taken) == len(contents)
        for number, content in zip(taken, contents, strict=True):
            self._written[number] = content

    def contents(self, numbers: list[int]) -> list[Block]:
        """What is in these blocks now, whosever they are. IndexError: there is no such block."""
        if not all(0 <= number <= self.count for number in numbers):
            raise IndexError(f"blocks are numbered 0 to {self.count}")
        return [self._written[number] for number in numbers]

    def read(self, numbers: list[int]) -> list[int]:
        """Read the tokens in these blocks, in their order."""
        return [token for number in numbers for token in self._written[number]]
