"""The frontend's port: ours, shared with our own replicas, and with nobody else.

SO_REUSEPORT lets several frontends accept on one port. It would as silently let two topologies,
or two daemons of one user, share it, and clients would get answers from either at random. So who
finds the port in use asks who is there, and takes part only if it is a frontend of our topology.
"""

import errno
import http.client
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

TOPOLOGY_HEADER = "x-dynorch-topology"
ASK_TIMEOUT_S = 2.0
_LISTEN = "0A"
_ANY = {str(ipaddress.IPv4Address(0)): "127.0.0.1", "::": "::1"}

Address = tuple[Any, ...]


class PortError(Exception):
    """The address can't be had. `code` is a value of `core.reasons.Cause`."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def bind(host: str, port: int, topology: str) -> socket.socket:
    """Return a bound TCP socket that doesn't listen yet; PortError with what to do."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        text = f"[frontend] host {host!r} can't be resolved ({error}); use an address of this host"
        raise PortError("config", text) from None
    family, address = found[0][0], found[0][4]
    shared = _in_use(family, address)
    if shared and (stranger := _stranger(address, topology)):
        raise _taken(host, port, stranger)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit it; a chunk must not wait for the last one's acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise refused(host, port, error) from None
    return sock


def others_listen(sock: socket.socket) -> bool:
    """Whether a socket other than `sock` listens on its port."""
    own = os.fstat(sock.fileno()).st_ino
    port = sock.getsockname()[1]
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            text = Path(table).read_text()
        except FileNotFoundError:
            continue
        if listeners(text, port) - {own}:
            return True
    return False


def listeners(table: str, port: int) -> set[int]:
    """Return the inodes of the sockets that listen on `port`, from the text of /proc/net/tcp."""
    found = set()
    for line in table.splitlines()[1:]:
        columns = line.split()
        if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
            found.add(int(columns[9]))
    return found


def _in_use(family: int, address: Address) -> bool:
    """Whether anybody listens there: without SO_REUSEPORT the kernel refuses to share."""
    if address[1] == 0:
        return False
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return True
    return False


def _stranger(address: Address, topology: str) -> str:
    """Who answers there, if it isn't a frontend of ours; empty if it is, or can't be told.

    What doesn't answer can't be told; if it isn't ours, the kernel will refuse to share with it
    unless it asked for sharing too.
    """
    host = _ANY.get(str(address[0]), str(address[0]))
    connection = http.client.HTTPConnection(host, int(address[1]), timeout=ASK_TIMEOUT_S)
    try:
        connection.request("GET", "/live")
        theirs = connection.getresponse().getheader(TOPOLOGY_HEADER)
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    if theirs is None:
        return "another program"
    return "" if theirs == topology else f"the frontend of topology {theirs!r}"


def _taken(host: str, port: int, by: str) -> PortError:
    text = (
        f"port {port} on {host} is taken by {by}: stop it or set another [frontend] port "
        f"(`ss -ltnp sport = :{port}` shows the process)"
    )
    return PortError("port-in-use", text)


def refused(host: str, port: int, error: OSError) -> PortError:
    """Say what an OSError from bind or listen means."""
    if isinstance(error, PermissionError):
        text = f"no permission to listen on port {port}: set a [frontend] port above 1023"
        return PortError("config", text)
    if error.errno == errno.EADDRINUSE:
        return _taken(host, port, "another process")
    text = f"can't listen on {host} port {port}: {error.strerror}; check [frontend] host"
    return PortError("config", text)
