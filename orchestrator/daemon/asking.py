"""Asking a plain command how it is, in the loop: a GET, a connection, a look into its log.

Each way returns an empty text for a good answer, else a few words for `status`. All of them are
bounded in time by whoever calls, and in bytes here. Nothing is sent but the request line, and no
redirect is followed: what the file names is what is asked.
"""

import asyncio
import contextlib
import os
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator import __version__

HEAD_BYTES_MAX = 16 << 10
BODY_BYTES_MAX = 64 << 10
"""A longer answer's rest isn't waited for."""

LOG_BYTES_MAX = 1 << 20
"""Read of a log in one look; what a process writes faster is looked at a little later."""

LINE_BYTES_MAX = 4096
"""A longer line is matched by its first part only: that bounds what a pattern can cost."""


def words(error: Exception) -> str:
    """What went wrong, without numbers and addresses that are known anyway."""
    if isinstance(error, OSError):
        found = re.search(r"\[Errno (\d+)\]", str(error))  # "Multiple exceptions: [Errno 111] ..."
        number = error.errno or (int(found[1]) if found else 0)
        text = os.strerror(number) if number > 0 else (error.strerror or str(error))
        return text[:1].lower() + text[1:120]
    return str(error)[:120] or type(error).__name__


async def _connect(
    host: str, port: int, context: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect. The name that most probes have is known: asking for it would take threads."""
    if host == "localhost":
        with contextlib.suppress(OSError):
            return await _connect("::1", port, context)
        host = "127.0.0.1"
    return await asyncio.open_connection(host, port, ssl=context, limit=HEAD_BYTES_MAX)


async def http(url: str) -> str:
    """GET; good is 2xx."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    host = parts.hostname or ""
    context = _unverified() if secure else None
    try:
        reader, writer = await _connect(host, port, context)
    except (OSError, ValueError) as error:
        return words(error)
    try:
        target = parts.path or "/"
        target += f"?{parts.query}" if parts.query else ""
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: dynorch/{__version__}"
            "\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        head = await reader.readuntil(b"\r\n\r\n")
        await _drain(reader, head)
    except asyncio.LimitOverrunError:
        return "its answer's head is too long"
    except asyncio.IncompleteReadError as error:
        return "closed the connection without an answer" if not error.partial else "broke off"
    except OSError as error:
        return words(error)
    finally:
        writer.close()
    status = re.match(rb"HTTP/1\.[01] ([0-9]{3})", head)
    if status is None:
        return "its answer isn't HTTP"
    return "" if status[1].startswith(b"2") else f"answered {status[1].decode()}"


async def _drain(reader: asyncio.StreamReader, head: bytes) -> None:
    """Take the body, so that a server isn't cut off in the middle of a short answer."""
    length = re.search(rb"\r\ncontent-length: *([0-9]{1,9})\r\n", head.lower())
    if length is not None:
        await reader.readexactly(min(int(length[1]), BODY_BYTES_MAX))


def _unverified() -> ssl.SSLContext:
    """Without a look at the certificate: nothing secret is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def tcp(address: str) -> str:
    """Connect, and hang up."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await _connect(host.strip("[]"), int(port))
    except (OSError, ValueError) as error:
        return words(error)
    writer.close()
    return ""


class LogLook:
    """Reads what one life has written so far, each byte once, across a rotation.

    `begin`: the size of the file when the life began; what is before it is an earlier life's.
    """

    def __init__(self, path: str, begin: int) -> None:
        self._path = Path(path)
        self._offset = begin
        self._inode = 0
        self._partial = b""

    def find(self, pattern: str) -> bool:
        """Whether one of the lines since the last look matches; the last may be unfinished."""
        search = re.compile(pattern).search
        lines = (self._partial + self._news()).split(b"\n")
        self._partial = lines[-1][:LINE_BYTES_MAX]
        return any(search(line[:LINE_BYTES_MAX].decode(errors="replace")) for line in lines)

    def _news(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                old = b""
                if facts.st_size < self._offset or self._inode not in {0, facts.st_ino}:
                    old = self._rest_of_rotated()
                    self._offset = 0
                self._inode = facts.st_ino
                news = os.pread(file.fileno(), LOG_BYTES_MAX, self._offset)
                self._offset += len(news)
                return old + news
        except OSError:
            return b""  # nothing was written yet, or it is being rotated just now

    def _rest_of_rotated(self) -> bytes:
        try:
            with Path(f"{self._path}.1").open("rb") as file:
                return os.pread(file.fileno(), LOG_BYTES_MAX, self._offset)
        except OSError:
            return b""
