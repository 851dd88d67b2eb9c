"""A plain HTTP/1.1 client over asyncio streams that hides nothing: exact bytes out, exact bytes in.

For wire-level tests, where a real client library would mend, retry or refuse what has to be tried.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0
"""For any one wait; a test that needs less says so."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    version: str
    fields: tuple[tuple[str, str], ...]
    """In order, names in lower case."""

    def __getitem__(self, name: str) -> str | None:
        """The one value of a header; None when it is absent. Raises for a header that came twice."""
        found = [value for key, value in self.fields if key == name]
        if len(found) > 1:
            raise ValueError(f"{name} came {len(found)} times: {found}")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Answer:
    head: Head
    body: bytes

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The `error` of the envelope, which must have its four keys and nothing beside it."""
        envelope = self.json
        assert set(envelope) == {"error"}, envelope
        error: dict[str, Any] = envelope["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str), error
        assert error["message"], error
        assert isinstance(error["type"], str), error
        assert error["param"] is None or isinstance(error["param"], str), error
        assert error["code"] is None or isinstance(error["code"], str), error
        return error


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event, or a comment between events."""

    at_s: float
    """`time.monotonic()` when its last byte had arrived."""
    text: str
    """As it came, without the blank line that ends it."""

    @property
    def data(self) -> str | None:
        """None for a comment."""
        return self.text.removeprefix("data: ") if self.text.startswith("data: ") else None

    @property
    def json(self) -> Any:
        return json.loads(self.data or "null")


class Connection:
    """One TCP connection; requests are written as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, timeout_s: float = TIMEOUT_S) -> Head:
        """Of the next response; interim ones (1xx) are returned like any other."""
        async with asyncio.timeout(timeout_s):
            raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        pairs = (line.partition(":") for line in lines)
        fields = tuple((name.lower(), value.strip()) for name, _, value in pairs)
        return Head(int(status), version, fields)

    async def body(self, head: Head, timeout_s: float = TIMEOUT_S) -> bytes:
        async with asyncio.timeout(timeout_s):
            return b"".join([piece async for piece in self.pieces(head)])

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body as it arrives, one item a chunk."""
        if head["transfer-encoding"] == "chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        elif (length := head["content-length"]) is not None:
            yield await self._reader.readexactly(int(length))
        else:
            while piece := await self._reader.read(65536):
                yield piece

    async def events(self, head: Head, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Event]:
        """Events and comments. Raises when the stream ends within one, or ends without a proper end."""
        rest = ""
        pieces = self.pieces(head)
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            *whole, rest = (rest + piece.decode()).split("\n\n")
            for text in whole:
                yield Event(time.monotonic(), text)
        assert rest == "", f"the stream ended within an event: {rest!r}"

    async def is_closed(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Wait for the server to close. False when it sends something instead."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.read(1) == b""
        except ConnectionError:
            return True

    def pause_reading(self) -> None:
        """Leave what comes in the kernel's buffers, as a client does that has stopped reading."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def hang_up(self) -> float:
        """Leave without a word; when that was, on `time.monotonic()`."""
        self._writer.transport.abort()
        return time.monotonic()


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    """A connection to the server at `url`, dropped at the end of the block."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**22)
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        connection.hang_up()


def request_bytes(
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    version: str = "HTTP/1.1",
) -> bytes:
    """A request as it goes over the wire. A header given in `headers` is never added by itself."""
    fields = {name.lower(): value for name, value in (headers or {}).items()}
    fields.setdefault("host", "localhost")
    if body and "transfer-encoding" not in fields:
        fields.setdefault("content-length", str(len(body)))
        fields.setdefault("content-type", "application/json")
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(pieces: list[bytes]) -> bytes:
    """A body in the chunked coding."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


async def exchange(url: str, request: bytes, *, has_body: bool = True) -> Answer:
    """One request, one answer, on a connection of its own."""
    async with connect(url) as connection:
        await connection.send(request)
        head = await connection.head()
        return Answer(head, await connection.body(head) if has_body else b"")
