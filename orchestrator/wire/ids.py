"""Names of things that live and die, and how they are written.

A *replica* is one complete copy of a role (`agg/worker-0`). A *worker* is one process of it
(`agg/worker-0.0`: the last number is the member). A *life* is one incarnation of a worker
(`agg/worker-0.0#4`). Everything that can arrive late carries the life, never only the worker, so
that a message of a dead incarnation can't be mistaken for one of the living.
"""

import re
from typing import Self

import msgspec

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_LIFE = re.compile(r"([a-z0-9-]+)/([a-z0-9-]+)-([0-9]+)\.([0-9]+)#([0-9]+)")
_REPLICA = re.compile(r"([a-z0-9-]+)/([a-z0-9-]+)-([0-9]+)")


class ReplicaId(msgspec.Struct, frozen=True, order=True):
    """`topology/role-replica`."""

    topology: str
    role: str
    replica: int

    def __str__(self) -> str:
        return f"{self.topology}/{self.role}-{self.replica}"

    def life(self, member: int, incarnation: int) -> "LifeId":
        """The id of one member's process in one incarnation."""
        return LifeId(self, member, incarnation)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `topology/role-replica`; ValueError if it isn't one."""
        match = _REPLICA.fullmatch(text)
        if match is None:
            raise ValueError(f"not a replica id: {text!r}")
        return cls(match[1], match[2], int(match[3]))


class LifeId(msgspec.Struct, frozen=True, order=True):
    """`topology/role-replica.member#incarnation`."""

    of: ReplicaId
    member: int
    incarnation: int

    def __str__(self) -> str:
        return f"{self.of}.{self.member}#{self.incarnation}"

    @property
    def worker(self) -> str:
        """The worker id: the life without its incarnation."""
        return f"{self.of}.{self.member}"

    @property
    def slug(self) -> str:
        """A file name for this life."""
        return str(self).replace("/", "~")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `topology/role-replica.member#incarnation`; ValueError if it isn't one."""
        match = _LIFE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a life id: {text!r}")
        replica = ReplicaId(match[1], match[2], int(match[3]))
        return cls(replica, int(match[4]), int(match[5]))
