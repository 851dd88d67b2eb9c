"""Fetches URLs that a tenant or a request names, within limits and never inside the operator's network.

Made once per process by assembly; used by whatever delivers webhooks or loads files named by URL. It keeps
no cookie, heeds no proxy of the environment, decompresses nothing, and tells nobody where a name led.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from inferhub import __version__
from inferhub.core.errors import DeadlineExceeded, EgressRefused, InferHubError, Invalid, UpstreamFailed
from inferhub.egress.allow import parse_allow
from inferhub.egress.dial import Dialer, Resolve, SystemDns, dialling
from inferhub.egress.target import Target, read_redirect, read_url

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEPS_METHOD = frozenset({307, 308})
_KEEP_ALIVE_S = 15.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]{0,4096}", re.ASCII)
_OWN_HEADERS = frozenset({
    "accept-encoding", "connection", "content-length", "cookie", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch, and of all at once."""

    connect_s: float = 5.0
    """Looking up the name, connecting and TLS, and waiting for one of the connections."""
    total_s: float = 30.0
    """All of it, redirects and body included."""
    max_bytes: int = 16 * 1024**2
    """Body of a `get`; a larger one is refused."""
    max_reply_bytes: int = 64 * 1024
    """What is kept of the answer to a `post`."""
    max_redirects: int = 3
    max_connections: int = 64
    max_connections_per_host: int = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer. Whether its status is good is for the caller to say."""

    status: int
    content_type: str
    """In lower case, without parameters; `application/octet-stream` where the server named none."""
    body: bytes = field(repr=False)
    final_url: str = field(repr=False)
    """After redirects. May hold secrets, as the first URL may: not for logs or messages."""


class Fetcher:
    """One per process. Raises `EgressRefused` for a URL that is not fetched, whatever it leads to,
    `UpstreamFailed` and `DeadlineExceeded` when the other side fails."""

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        limits: FetchLimits = FetchLimits(),
        resolve: Resolve | None = None,
    ) -> None:
        """`resolve` replaces the system's DNS; what it answers is checked all the same."""
        self._allow = parse_allow(allow)
        self._limits = limits
        self._dns = SystemDns()
        self._dialer = Dialer(self._allow, resolve or self._dns.resolve)
        self._tls = ssl.create_default_context()
        self._opened: aiohttp.ClientSession | None = None
        self._closed = False

    async def get(self, url: str, *, accept: Callable[[str], bool] | None = None) -> Fetched:
        """The content of `url`. `accept` is asked about the content type before anything is read.

        The body of an answer other than 2xx is not read and comes back empty.
        """
        target = read_url(url, self._allow)
        async with self._in_time(target):
            for _ in range(self._limits.max_redirects + 1):
                async with self._exchange("GET", target) as response:
                    if response.status not in _REDIRECTS:
                        return await self._content(response, target, accept)
                    target = read_redirect(target, _location(response, target), self._allow)
        raise EgressRefused(f"The URL leads to more than {self._limits.max_redirects} redirects.")

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Fetched:
        """Deliver `body`. Only a redirect that keeps method, body and origin is followed.

        Of the answer's body the first `max_reply_bytes` are kept: what counts is its status.
        """
        target = read_url(url, self._allow)
        _check_headers(headers)
        async with self._in_time(target):
            for _ in range(self._limits.max_redirects + 1):
                async with self._exchange("POST", target, body, headers) as response:
                    if response.status not in _REDIRECTS:
                        reply = await _read(response, self._limits.max_reply_bytes)
                        reply = reply[: self._limits.max_reply_bytes]
                        return Fetched(response.status, response.content_type, reply, target.url)
                    target = self._same_place(response, target)
        raise EgressRefused(f"The URL leads to more than {self._limits.max_redirects} redirects.")

    async def close(self) -> None:
        """Running fetches fail."""
        self._closed = True
        self._dns.close()
        if self._opened is not None:
            await self._opened.close()

    def _session(self) -> aiohttp.ClientSession:
        """Opened at the first fetch, because it belongs to the event loop it was made on."""
        if self._closed:
            raise UpstreamFailed("This server is stopping and fetches nothing more.")
        if self._opened is None:
            connector = aiohttp.TCPConnector(
                resolver=self._dialer,
                socket_factory=self._dialer.open_socket,
                # A cached answer would outlive its check.
                use_dns_cache=False,
                ssl=self._tls,
                limit=self._limits.max_connections,
                limit_per_host=self._limits.max_connections_per_host,
                keepalive_timeout=_KEEP_ALIVE_S,
            )
            self._opened = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": "identity", "user-agent": f"inferhub/{__version__}"},
                timeout=aiohttp.ClientTimeout(total=None, connect=self._limits.connect_s),
                trust_env=False,
                auto_decompress=False,
            )
        return self._opened

    @asynccontextmanager
    async def _in_time(self, target: Target) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limits.total_s):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{target.shown} did not answer within {self._limits.total_s:g} s."
            ) from error

    @asynccontextmanager
    async def _exchange(
        self, method: str, target: Target, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and its answer's head; the connection is kept only if the body was read to its end."""
        session, url = self._session(), _library_url(target)
        token = dialling.set(target)
        try:
            response = await session.request(method, url, data=body, headers=headers, allow_redirects=False)
        except InferHubError:
            raise
        except Exception as error:
            raise self._translated(error, target) from _loggable(error)
        finally:
            dialling.reset(token)
        try:
            yield response
        finally:
            response.close()

    async def _content(
        self, response: aiohttp.ClientResponse, target: Target, accept: Callable[[str], bool] | None
    ) -> Fetched:
        kind = response.content_type
        if not 200 <= response.status < 300:
            return Fetched(response.status, kind, b"", target.url)
        if response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
            raise EgressRefused(f"{target.shown} sends compressed content, although asked not to.")
        if accept is not None and not accept(kind):
            raise EgressRefused(f"{target.shown} sends content of a type that is not accepted here.")
        body = b""
        if (response.content_length or 0) <= self._limits.max_bytes:
            body = await _read(response, self._limits.max_bytes)
        if max(len(body), response.content_length or 0) > self._limits.max_bytes:
            raise EgressRefused(f"{target.shown} sends more than {self._limits.max_bytes} bytes.")
        return Fetched(response.status, kind, body, target.url)

    def _same_place(self, response: aiohttp.ClientResponse, target: Target) -> Target:
        """The next hop of a POST. Elsewhere, its body and signature are nobody's business."""
        if response.status in _KEEPS_METHOD:
            there = read_redirect(target, _location(response, target), self._allow)
            if there.origin == target.origin:
                return there
        raise EgressRefused(f"{target.shown} redirects a POST ({response.status}); name its final address.")

    def _translated(self, error: Exception, target: Target) -> InferHubError:
        """The one border to the HTTP library. Its own texts hold whole URLs and what the other side sent."""
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"No connection to {target.shown} within {self._limits.connect_s:g} s.")
        if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            return UpstreamFailed(f"No TLS connection to {target.shown} that can be trusted.")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamFailed(f"{target.shown} cannot be reached.")
        return UpstreamFailed(f"{target.shown} closed the connection or gave no HTTP answer.")


def _library_url(target: Target) -> URL:
    url = URL(target.url, encoded=True)
    if (url.scheme, url.raw_host, url.port) != target.origin:
        raise EgressRefused("The URL can be read in two ways.")
    return url


def _location(response: aiohttp.ClientResponse, target: Target) -> str:
    location = response.headers.get("location")
    if not location:
        raise UpstreamFailed(f"{target.shown} redirects without saying where to.")
    return location


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """All of it, or one piece more than `max_bytes`."""
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        while size_bytes <= max_bytes and (piece := await response.content.readany()):
            pieces.append(piece)
            size_bytes += len(piece)
    except Exception as error:
        # The same fault comes as ClientError, OSError or a bare parser error.
        raise UpstreamFailed("The connection to the URL's host broke within its answer.") from _loggable(
            error
        )
    return b"".join(pieces)


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise Invalid(f"A header named {name[:100]!r} cannot be sent along.")
        if not _HEADER_VALUE.fullmatch(value):
            raise Invalid(f"The value of the header {name} is too long or has characters outside of ASCII.")


def _loggable(error: Exception) -> Exception | None:
    """The cause, if it may be logged: into its other errors the library writes whole URLs."""
    return error if isinstance(error, aiohttp.ClientConnectorError) else None
