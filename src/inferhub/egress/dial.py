"""Opens connections to checked addresses only: the name is asked for once, and what was checked is dialled.

Used by `fetcher` inside its connection pool. It stands between the HTTP library and the network at the only
two places where an address can enter: the resolver, and the making of a socket.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from aiohttp.abc import AbstractResolver, ResolveResult

from inferhub.core.errors import EgressRefused, UpstreamFailed
from inferhub.egress.allow import AllowList, parse_address
from inferhub.egress.target import Target

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(name, port) → addresses; raises `socket.gaierror`. Tests put their own DNS here."""

AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]

_log = logging.getLogger(__name__)
_MAX_ADDRESSES_TRIED = 8
_DNS_THREADS = 8
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_NOWHERE_PUBLIC = (
    "The URL's host does not lead to a public address. "
    "An operator can allow an internal host with the setting egress_allow."
)
"""The same words whether the name is unknown or internal: nobody can ask this server what its DNS knows."""

dialling: ContextVar[Target] = ContextVar("dialling")
"""What the running request is for. The library opens sockets within the context of its caller."""


class SystemDns:
    """The system's resolver, in threads of its own: a slow DNS server that someone names on purpose must
    not use up the threads that the rest of the process works with."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="egress-dns")

    async def resolve(self, name: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, name, port)
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(name: str, port: int) -> list[AddressInfo]:
    return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]


class Dialer(AbstractResolver):
    """Resolver and socket maker of the pool."""

    def __init__(self, allow: AllowList, resolve: Resolve) -> None:
        self._allow = allow
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        try:
            answers = list(dict.fromkeys(await self._resolve(host, port)))
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise EgressRefused(_NOWHERE_PUBLIC) from error
            raise UpstreamFailed("The host of the URL cannot be looked up at present.") from error
        # All of them: a name with one public and one internal address is an attack or a mistake.
        refused = [answer for answer in answers if not self._permits(host, answer, port)]
        if refused or not answers:
            # For the operator, who may want to allow it. The caller is told neither address nor reason.
            _log.info("egress refused: %s leads to %s", host, refused[0] if refused else "no address")
            raise EgressRefused(_NOWHERE_PUBLIC)
        return [_answer(host, answer, port) for answer in answers[:_MAX_ADDRESSES_TRIED]]

    def open_socket(self, info: AddressInfo) -> socket.socket:
        """The last gate. Whatever the library made of the URL on its way here, no socket for another
        address comes to be."""
        family, kind, protocol, _, address = info
        target = dialling.get()
        if address[1] != target.port or not self._permits(target.host, str(address[0]), target.port):
            raise PermissionError("not an address that was checked")
        return socket.socket(family, kind, protocol)

    def _permits(self, host: str, address: str, port: int) -> bool:
        try:
            return self._allow.permits(host, parse_address(address), port)
        except ValueError:
            return False

    async def close(self) -> None:
        """Nothing is held here."""


def _answer(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
