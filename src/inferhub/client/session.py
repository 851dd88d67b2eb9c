"""One server and one key over a pool of connections: requests out, bodies and events in, errors as ours.

The parts of `Client` share it. The only place where aiohttp's exceptions become InferHub's.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import msgspec

from inferhub.core import errors
from inferhub.core.errors import InferHubError

MAX_ANSWER_BYTES = 256 * 1024 * 1024
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""A picture is one event."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds of one request."""

    connect_s: float = 5.0
    silence_s: float = 600.0
    """Longest wait for the next byte of an answer."""


class Problem(msgspec.Struct):
    """An error as the server says it."""

    message: str
    code: str | None = None
    param: str | None = None

    def rebuilt(self, status: int = 400) -> InferHubError:
        """The error that the server raised: by its code, else by the status."""
        fallback = errors.RequestError if 400 <= status < 500 else errors.InternalError
        kind = _BY_CODE.get(self.code or "") or _BY_STATUS.get(status, fallback)
        return kind(self.message, param=self.param, code=self.code)


class _Envelope(msgspec.Struct):
    error: Problem


T = TypeVar("T")


class Part(NamedTuple):
    """A field of a form, or a file in one."""

    name: str
    content: str | bytes
    file_name: str | None = None


Form = Sequence[Part]


class Session:
    """An open connection pool: `async with Session(url, key) as session`."""

    def __init__(self, url: str, key: str | None = None, *, timeouts: Timeouts | None = None) -> None:
        """`url` is the server's address, with or without `/v1`. Raises `Invalid` and `Unauthenticated`."""
        self.url = base_address(url)
        if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
            raise errors.Unauthenticated("The API key has characters that no key has.")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeouts = timeouts or Timeouts()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.silence_s
        )
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def infer(self, path: str, request: msgspec.Struct, answer: type[T]) -> T:
        return decode(await self.body("POST", f"/v1/{path}", encode(request, stream=False)), answer)

    @asynccontextmanager
    async def stream(
        self, path: str, request: msgspec.Struct, chunk: type[T]
    ) -> AsyncIterator[AsyncIterator[T]]:
        async with (
            self.request("POST", f"/v1/{path}", encode(request, stream=True)) as response,
            aclosing(_chunks(response, chunk)) as chunks,
        ):
            yield chunks

    async def body(
        self, method: str, path: str, body: bytes | None = None, *, form: Form | None = None
    ) -> bytes:
        async with self.request(method, path, body, form=form) as response:
            return await read(response)

    async def events(self, path: str, kind: type[T], *, form: Form) -> AsyncGenerator[T]:
        """The events of a stream that one of its own events ends; whether that came, the caller sees."""
        async with self.request("POST", path, form=form) as response:
            async for data in _events(response):
                if data.startswith(b'{"error"'):
                    raise _rebuild(response, data)
                if data != b"[DONE]":
                    yield decode(data, kind)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (200,),
        *,
        form: Form | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("use `async with`")
        if body is not None and headers is None:
            headers = {"Content-Type": "application/json"}
        data = body if form is None else _written(form)
        with translated(self.url):
            response = await self._session.request(
                method, self.url + path, data=data, headers=headers, allow_redirects=False
            )
        try:
            if response.status not in accept:
                raise _rebuild(response, await read(response))
            yield response
        finally:
            response.close()  # an unread rest ends the connection, and with it the call

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """An open WebSocket; closed at the end."""
        if self._session is None:
            raise RuntimeError("use `async with`")
        with translated(self.url):
            try:
                socket = await self._session.ws_connect(self.url + path, max_msg_size=MAX_EVENT_BYTES)
            except aiohttp.WSServerHandshakeError as error:
                problem = Problem(f"{self.url} refused the connection with status {error.status}.")
                raise problem.rebuilt(error.status) from error
        try:
            yield socket
        finally:
            await socket.close()


_ADDRESS = re.compile(
    r"(?P<scheme>https?://)?(?P<place>(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?)"
    r"(?P<path>/[^\s?#]*|)"
)


def base_address(url: str) -> str:
    """`http://host:port` of any form people write it in. Raises `Invalid`."""
    match = _ADDRESS.fullmatch(url.strip())
    if not match or int(match["port"] or 0) > 65535:
        raise errors.Invalid(f"{url[:200]!r} is not a server's address; write http://HOST:PORT.", param="url")
    path = match["path"].rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{match['scheme'] or 'http://'}{match['place']}{path}"


# --- writing and reading --------------------------------------------------------------------------


def encode(request: msgspec.Struct, *, stream: bool) -> bytes:
    body = without_none(request)
    body.pop("stream", None)
    if stream:
        body["stream"] = True
    else:
        body.pop("stream_options", None)
    return msgspec.json.encode(body)


def _written(form: Form) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for part in form:
        kind = None if part.file_name is None else "application/octet-stream"
        data.add_field(part.name, part.content, filename=part.file_name, content_type=kind)
    return data


def without_none(value: Any) -> Any:
    """Structs without their unset fields. Plain mappings stay whole: a JSON schema's nulls matter."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        named = {config.tag_field: config.tag} if config.tag_field else {}
        values = [getattr(value, name) for name in value.__struct_fields__]
        pairs = zip(value.__struct_encode_fields__, values, strict=True)
        return named | {name: without_none(item) for name, item in pairs if item is not None}
    if isinstance(value, list):
        return [without_none(item) for item in value]
    return value


def decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise errors.UpstreamFailed(f"The server's answer is not InferHub's: {error}.") from error


async def read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in pieces(response):
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise errors.UpstreamFailed(f"The server's answer is longer than {MAX_ANSWER_BYTES} bytes.")
    return bytes(body)


async def pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    while True:
        with translated(str(response.url.origin())):
            piece = await response.content.readany()
        if not piece:
            return
        yield piece


async def _chunks(response: aiohttp.ClientResponse, kind: type[T]) -> AsyncGenerator[T]:
    """The events up to `[DONE]`. An event that is an error is raised; so is an end without `[DONE]`."""
    if response.content_type != "text/event-stream":
        raise errors.UpstreamFailed(f"The server answered with {response.content_type}, not with a stream.")
    async for data in _events(response):
        if data == b"[DONE]":
            return
        if data.startswith(b'{"error"'):
            raise _rebuild(response, data)
        yield decode(data, kind)
    raise errors.EndpointLost("The server closed the stream before the answer was complete.")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Data of each server-sent event; comments and other fields are skipped."""
    rest = b""
    data: list[bytes] = []
    async for piece in pieces(response):
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_EVENT_BYTES:
            raise errors.UpstreamFailed(f"An event of the stream is longer than {MAX_EVENT_BYTES} bytes.")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


# --- errors ---------------------------------------------------------------------------------------


_BY_CODE = {kind.code: kind for kind in errors.family(InferHubError)}
_BY_STATUS: dict[int, type[InferHubError]] = {
    400: errors.Invalid,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    422: errors.SetupError,
    429: errors.UpstreamRateLimited,
    502: errors.UpstreamFailed,
    503: errors.Overloaded,
    504: errors.DeadlineExceeded,
}


def _rebuild(response: aiohttp.ClientResponse, body: bytes) -> InferHubError:
    status = response.status
    try:
        error = msgspec.json.decode(body, type=_Envelope).error.rebuilt(status)
    except msgspec.DecodeError:
        return errors.UpstreamFailed(f"{response.url.origin()} answered {status}, and not as InferHub does.")
    request_id = response.headers.get("x-request-id")
    if isinstance(error, errors.InternalError) and request_id:
        error.message += f" (request {request_id[:100]})"
    wait_s = response.headers.get("retry-after", "")
    error.retry_after_s = float(wait_s) if wait_s.isdigit() else None
    reason = response.headers.get("x-inferhub-reason", "")
    error.reason = reason if reason in errors.REASONS else error.reason
    return error


@contextmanager
def translated(url: str) -> Iterator[None]:
    """aiohttp's exceptions become ours here and nowhere else. Never around code of the caller's."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        number = error.os_error.errno if isinstance(error, aiohttp.ClientConnectorError) else None
        reason = os.strerror(number).lower() if number and number > 0 else "no connection in time"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            reason = "the host name is unknown"
        raise errors.ServerUnreachable(f"No server answers at {url}: {reason}.") from error
    except TimeoutError as error:
        raise errors.DeadlineExceeded(f"{url} was silent for too long.") from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise errors.EndpointLost(f"{url} closed the connection before the answer was complete.") from error
    except aiohttp.ClientError as error:
        raise errors.UpstreamFailed(f"{url} does not answer as an HTTP server does: {error}.") from error
