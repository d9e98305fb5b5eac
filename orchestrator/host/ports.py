"""Is a TCP port free, and if not, who has it.

The only honest test is to bind it the way its user will: with SO_REUSEADDR, so that connections of
an earlier life that still time out don't count, and without SO_REUSEPORT, so that sharing with a
stranger does. The answer is a sentence for people. It may be out of date at once; the bind of the
worker itself decides.
"""

import errno
import importlib
import re
import socket

_IN_USE = re.compile(r"address already in use|EADDRINUSE", re.IGNORECASE)
_PORT = re.compile(r"(?<![\d.])\d{4,5}(?![\d.])")
LINES_MAX = 4
"""Lines of a log in which holders are looked up; each look goes through all connections."""


def trouble_with(port: int, host: str = "0.0.0.0") -> str:  # noqa: S104 - asked for, not served
    """Return why this port can't be bound, as a sentence; empty when it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return _sentence(port, host, error)
    return ""


def _sentence(port: int, host: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use by {holder(port) or 'a process that we may not see'}"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges that we don't have"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} isn't an address of this machine"
    return f"port {port} on {host} can't be bound: {error.strerror}"


def holder(port: int) -> str:
    """Name who listens on a TCP port, as "pid 123 (name)"; empty when that can't be seen."""
    psutil = importlib.import_module("psutil")
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return ""
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            try:
                return f"pid {one.pid} ({psutil.Process(one.pid).name()})"
            except psutil.Error:
                return f"pid {one.pid}"
    return ""


def with_holders(tail: str) -> str:
    """Copy of a log's tail whose lines about a taken port say who has it, where that can be seen.

    Ask soon after the line was written: it is about whoever listens there now.
    """
    if not _IN_USE.search(tail):
        return tail
    lines = tail.split("\n")
    for index in [index for index, line in enumerate(lines) if _IN_USE.search(line)][-LINES_MAX:]:
        for port in dict.fromkeys(_PORT.findall(lines[index])):
            if who := holder(int(port)):
                lines[index] += f"; port {port} is in use by {who}"
    return "\n".join(lines)
