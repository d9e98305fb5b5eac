"""What two engines say to each other about KV blocks, over loopback TCP.

NIXL does this in two ways: a handshake over the side channel, and then reads and notes over its own
transports, which ask no processor of the other side. Here one connection does both, but the rules
are the same: whoever shook hands may read any block at any time, whatever it holds by then, and a
note says no more than that a request's blocks were read.
"""

import asyncio
from typing import TypeVar

import msgspec

HOST = "127.0.0.1"
FRAME_MAX = 16 << 20
"""Bytes: more than the longest context takes."""
_LENGTH = 4


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first word of who wants to read."""


class Agent(msgspec.Struct, frozen=True, tag="agent"):
    """The answer: who this is, and what another engine must have in common with it."""

    engine: str
    compatibility: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read these blocks, which takes so long; answered by what is in them at its end."""

    number: int
    blocks: list[int]
    seconds: float


class Content(msgspec.Struct, frozen=True, tag="content"):
    """What was read."""

    number: int
    blocks: list[list[int]]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """What could not be read, and why."""

    number: int
    why: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A note: nobody needs this request's blocks any more, they were read or never will be."""

    request: str


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """A note: these requests still wait to be read."""

    requests: list[str]


ToLender = Hello | Read | Done | Beat
ToReader = Agent | Content | Refused
T = TypeVar("T")

to_lender = msgspec.msgpack.Decoder(ToLender)
to_reader = msgspec.msgpack.Decoder(ToReader)
_encode = msgspec.msgpack.Encoder().encode


def say(writer: asyncio.StreamWriter, message: ToLender | ToReader) -> None:
    """Send one message; to whom is gone it goes nowhere."""
    data = _encode(message)
    writer.write(len(data).to_bytes(_LENGTH, "big") + data)


async def hear(reader: asyncio.StreamReader, decoder: "msgspec.msgpack.Decoder[T]") -> T | None:
    """Wait for one message; None when the other side is gone, or talks nonsense."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
        if length > FRAME_MAX:
            return None
        return decoder.decode(await reader.readexactly(length))
    except (OSError, EOFError, msgspec.DecodeError):
        return None
