"""The HTTP border that remote backends share: one pooled session, every limit, one translation of errors.

Backends of vendors import it inside `load`, so that nobody pays for the HTTP library who has no remote
model. It knows nothing of JSON or of models, follows no redirect, keeps no cookie and never retries.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping

import aiohttp
from yarl import URL

from inferhub import __version__
from inferhub.core.errors import EndpointStalled, InferHubError, UpstreamFailed

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Bound of an answer that is read whole, after decompression."""
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_BODY_TIMEOUT_S = 5.0
_DRAIN_TIMEOUT_S = 0.05
_KEEP_ALIVE_S = 30.0
_LARGE_BODY_BYTES = 1024 * 1024
"""From here on a body is written bit by bit: at once, it would hold up every other call."""


class Refusal(Exception):
    """The upstream answered with another status than 200; the backend knows what its body means."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers
        self.body = body


class HttpUpstream:
    """One upstream. Open it on the event loop that will use it, and close it there."""

    def __init__(self, *, headers: Mapping[str, str], connect_timeout_s: float, max_connections: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_KEEP_ALIVE_S),
            # Calls of different tenants share the session: no cookie may pass between them.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compression would make the upstream hold small chunks back.
            headers={"accept-encoding": "identity", "user-agent": f"inferhub/{__version__}", **headers},
            skip_auto_headers=("Accept", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s),
        )
        self._connect_timeout_s = connect_timeout_s

    async def post(
        self, url: URL, body: bytes, headers: Mapping[str, str], headers_timeout_s: float
    ) -> Answer:
        """Send and wait for the head. Raises `Refusal` unless it says 200. Close the answer."""
        data = body if len(body) < _LARGE_BODY_BYTES else io.BytesIO(body)
        try:
            async with asyncio.timeout(headers_timeout_s):
                response = await self._session.post(url, data=data, headers=headers, allow_redirects=False)
        except aiohttp.ServerTimeoutError as error:
            raise EndpointStalled(
                f"No connection to the upstream within {self._connect_timeout_s:g} s (connect timeout)."
            ) from error
        except TimeoutError as error:
            raise EndpointStalled(
                f"The upstream sent no response head within {headers_timeout_s:g} s (headers timeout)."
            ) from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamFailed("The upstream cannot be reached.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFailed("The upstream closed the connection before it answered.") from error
        answer = Answer(response)
        if response.status == 200:
            return answer
        try:
            body = await answer.read_error_body()
        finally:
            answer.close()
        raise Refusal(response.status, response.headers, body)

    async def close(self) -> None:
        await self._session.close()


class Answer:
    """A response whose head has arrived. Reading it to its end returns the connection to the pool;
    closing it earlier closes the connection, which tells the upstream to stop."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content
        self._closed: asyncio.Future[None] | None = None
        if not self._content.is_eof():
            protocol = response.connection.protocol if response.connection else None
            self._closed = protocol.closed if protocol is not None else None
            self._watch_connection()

    @property
    def kind(self) -> str:
        """The content type, in lower case and without parameters."""
        return self._response.content_type.lower()

    def _watch_connection(self) -> None:
        """Wake a reader that the library forgets: after broken chunk framing it closes the connection
        but (up to 3.14 at least) lets `readany` wait for ever."""
        if self._closed is None:
            self._fail(None)
            return
        self._closed.add_done_callback(self._connection_closed)
        # Once per connection, however many answers it carries: see `_retrieve`.
        self._closed.remove_done_callback(_retrieve)
        self._closed.add_done_callback(_retrieve)

    def _connection_closed(self, closed: asyncio.Future[None]) -> None:
        self._fail(None if closed.cancelled() else closed.exception())

    def _fail(self, error: BaseException | None) -> None:
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(error or aiohttp.ClientPayloadError("The connection was closed."))

    async def read_piece(self) -> bytes:
        """Whatever has arrived since the last piece, decompressed; empty at the end."""
        try:
            return await self._content.readany()
        except Exception as error:
            # The same fault comes as ClientError, OSError, RuntimeError or a bare parser error,
            # depending on how the bytes fell into packets.
            raise UpstreamFailed("The connection to the upstream broke within its answer.") from error

    async def read_whole(self, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
        """Raises `UpstreamFailed` past the bound, having read no more than one piece beyond it."""
        pieces: list[bytes] = []
        size_bytes = 0
        while piece := await self.read_piece():
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                raise UpstreamFailed(f"The upstream's answer is larger than {max_bytes} bytes.")
            pieces.append(piece)
        return b"".join(pieces)

    async def read_error_body(self) -> bytes:
        """What can be had of it quickly: the status alone says enough."""
        try:
            async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
                return await self.read_whole(_MAX_ERROR_BYTES)
        except (InferHubError, TimeoutError):
            return b""

    async def drain(self) -> None:
        """Give the end of a finished answer a moment to arrive, so that the connection can be kept."""
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                while await self.read_piece():
                    pass
        except (InferHubError, TimeoutError):
            return

    def close(self) -> None:
        if self._closed is not None:
            self._closed.remove_done_callback(self._connection_closed)
        self._response.close()


def _retrieve(closed: asyncio.Future[None]) -> None:
    """Look at how an idle connection ended, or asyncio logs the reset as an error nobody handled."""
    if not closed.cancelled():
        closed.exception()
