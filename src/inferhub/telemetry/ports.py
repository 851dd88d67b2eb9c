"""Listening sockets, and who holds a port that is taken."""

from __future__ import annotations

import errno
import socket

import psutil

from inferhub.core.errors import PortTaken, SetupError


def listen(host: str, port: int, *, setting: str = "port") -> socket.socket:
    """A bound TCP socket; port 0 picks a free one. Raises `PortTaken` naming the holder."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise SetupError(f"{host!r} is not an address of this machine.", param="host") from error
    bound = socket.socket(family, kind, protocol)
    # Lets a restarted server have the port of its predecessor; a living one still refuses.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Port {port} on {host} is taken by {holder(port)}. Stop it, or choose another port with "
                f"--{setting.replace('_', '-')} (0 picks a free one).",
                param=setting,
            ) from error
        raise SetupError(f"Cannot listen on {host}:{port}: {error.strerror}.", param="host") from error
    bound.setblocking(False)
    return bound


def holder(port: int) -> str:
    """The process that listens on `port`, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return "another process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and _port(connection.laddr) == port and connection.pid:
            try:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.Error:
                return f"process {connection.pid}"
    return "another process"


def _port(address: tuple[str, int] | tuple[()]) -> int | None:
    return address[1] if address else None
