"""Who has read the beginning of a prompt before: approximate prefix affinity. Pure, and bounded.

A worker's cache knows the prompts that it has read, in blocks of tokens. We don't see tokens, so we
look at bytes: a prompt's text is cut into chunks, each hashed together with all before it, and the
table says which life was last given a prompt with that beginning. The longest beginning that is
known decides. It is a guess, and only speed hangs on it: at worst a worker reads what another has.

Affinity must not pile everything on one worker, because all prompts of an application begin alike.
So a worker that is far ahead of the idlest in open requests is passed over, and whoever is picked
instead has that beginning from then on.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeVar

from workers.frontend.intake import Fields
from workers.frontend.picks import Loaded, Turns, least_loaded

CHUNK_BYTES = 256
CHUNKS_MAX = 256
"""Prompts are told apart by their first 64 KiB."""
ENTRIES_MAX = 65536
AHEAD_MAX = 4
AHEAD_RATIO_MAX = 1.5
"""A worker with more open requests than the idlest by both of these doesn't get another for its
cache's sake."""
_TEXTS = ("tools", "system", "instructions", "messages", "prompt", "input")
"""Where a prompt's text is, in the order in which chat templates put it."""

Chain = Sequence[int]


class Living(Loaded, Protocol):
    """What affinity may know about a worker."""

    @property
    def life(self) -> str:
        """Its life: a restarted worker has read nothing yet."""


L = TypeVar("L", bound=Living)


def chain(model: str, fields: Fields | None) -> Chain:
    """Return one hash for each beginning of a request's prompt, the shortest first."""
    if fields is None:
        return ()
    room = CHUNK_BYTES * CHUNKS_MAX
    texts = [bytes(fields[name])[:room] for name in _TEXTS if name in fields]
    text = (texts[0] if len(texts) == 1 else b"".join(texts))[:room]
    found: list[int] = []
    before = hash((model, bytes(fields.get("cache_salt", b""))))
    for end in range(CHUNK_BYTES, len(text) + 1, CHUNK_BYTES):
        before = hash((before, text[end - CHUNK_BYTES : end]))
        found.append(before)
    return found


class Prefixes:
    """Which life was last given which beginnings; those unused for longest are forgotten first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._owners: OrderedDict[int, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._owners)

    def pick(self, candidates: Sequence[L], turns: Turns, beginnings: Chain) -> tuple[L, str]:
        """Pick the one that knows the longest beginning, unless it is far ahead in load."""
        idlest, reason = least_loaded(candidates, turns)
        if not beginnings or len(candidates) == 1:
            return self._given(idlest, beginnings), reason
        known = self._known(candidates, beginnings)
        if known is None:
            return self._given(idlest, beginnings), f"{reason}; nobody knows the prefix"
        if _far_ahead(known.inflight, idlest.inflight):
            return self._given(idlest, beginnings), f"{reason}; who knows the prefix is overloaded"
        return self._given(known, beginnings), "knows the prefix"

    def forget(self, life: str) -> None:
        """Drop what a life knew: its cache is gone with it."""
        kept = ((one, owner) for one, owner in self._owners.items() if owner != life)
        self._owners = OrderedDict(kept)

    def _known(self, candidates: Sequence[L], beginnings: Chain) -> L | None:
        for beginning in reversed(beginnings):
            life = self._owners.get(beginning)
            if life is not None:
                for one in candidates:
                    if one.life == life:
                        return one
        return None

    def _given(self, one: L, beginnings: Chain) -> L:
        owners = self._owners
        for beginning in beginnings:
            owners[beginning] = one.life
            owners.move_to_end(beginning)
        while len(owners) > self._entries_max:
            owners.popitem(last=False)
        return one


def _far_ahead(inflight: int, least: int) -> bool:
    return inflight > least + AHEAD_MAX and inflight > least * AHEAD_RATIO_MAX
