"""`Idempotency-Key` on any POST: the first request is executed, the others get its stored answer.

Called by `door`, only for requests that carry the header. Works on the ASGI messages of the answer, so
unary answers, streams and admin routes are all the same to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferhub.core.errors import Conflict, InferHubError, Invalid
from inferhub.core.tenancy import Principal
from inferhub.gateway.answer import Exchange
from inferhub.gateway.payload import is_form
from inferhub.stores.cache.base import MAX_VALUE_BYTES, AnswerStore

_log = logging.getLogger(__name__)

KEPT_S = 24 * 3600.0
LEASE_S = 60.0
"""How long a process may be silent before its request counts as died with it."""

_KEY = re.compile(rb"^[\x21-\x7e]{1,255}$")
# What belongs to one exchange, or to its moment, and not to the answer.
_OWN_HEADER = re.compile(
    rb"x-request-id|request-id|openai-|access-control-expose-headers|date$|connection$|x-ratelimit-|retry-after"
)
_MAX_KEPT_BYTES = MAX_VALUE_BYTES // 2
_NOT_KEPT = frozenset({400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 499})
"""Nothing was executed, so nothing can be executed twice."""
_FAILURES = (b'data: {"error":', b"event: error\n", b"event: response.failed\n")
"""How streams say that they failed after their first byte, each dialect in its way."""


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """What the store holds under a key."""

    state: Literal["running", "done", "unkept"]
    fingerprint: bytes
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class Idempotency:
    """One per gateway process; `store` is shared by all of them."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store

    async def __call__(
        self, scope: Scope, body: bytes, principal: Principal, exchange: Exchange, execute: ASGIApp
    ) -> None:
        """Run `execute` and keep its answer, or replay the one that is kept.

        Raises `Invalid` for an unusable key, `Conflict` for one in use, and `StoreFailed`: without the
        store nobody can promise that the request runs once.
        """
        key = _store_key(dict(scope["headers"])[b"idempotency-key"], principal)
        fingerprint = _fingerprint(scope, body, principal)
        found = await self._store.add(key, _encode(_Record("running", fingerprint)), LEASE_S)
        if found is not None:
            return await _replay(_decode(found), fingerprint, exchange)
        async with self._held(key, fingerprint) as end_hold:

            async def keep(answer: _Recorder) -> None:
                await end_hold()
                await self._keep(key, answer.record(fingerprint))

            recorder = _Recorder(exchange.send, keep)
            try:
                await execute(scope, _replaying(body), recorder.send)
            finally:
                await end_hold()
                if not recorder.is_whole:
                    # A client that hung up has no answer, so its next try must be allowed to get one.
                    await asyncio.shield(self._give_up(key))

    @asynccontextmanager
    async def _held(self, key: bytes, fingerprint: bytes) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Keep the mark alive while the request runs, however long that is. Yields what ends it."""
        writing = asyncio.Lock()

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_S / 3)
                async with writing:
                    with contextlib.suppress(InferHubError):
                        await self._store.put(key, _encode(_Record("running", fingerprint)), LEASE_S)

        task = asyncio.create_task(renew())

        async def end() -> None:
            # A renewal under way is waited for: written after the answer, it would take its place.
            async with writing:
                task.cancel()

        try:
            yield end
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _keep(self, key: bytes, record: _Record | None) -> None:
        if record is None:
            return await self._give_up(key)
        try:
            await self._store.put(key, _encode(record), KEPT_S)
        except InferHubError as error:
            # The answer is paid for and goes out; until the mark ends, a second request is refused.
            _log.warning("an idempotent answer could not be kept: %s", error.message)

    async def _give_up(self, key: bytes) -> None:
        with contextlib.suppress(InferHubError):
            await self._store.delete(key)


def _store_key(given: bytes, principal: Principal) -> bytes:
    if not _KEY.match(given):
        raise Invalid(
            "Idempotency-Key must be 1 to 255 printable characters without blanks.", param="Idempotency-Key"
        )
    return hashlib.sha256(b"idempotency\0" + principal.tenant_id.encode() + b"\0" + given).digest()


_BOUNDARY = re.compile(rb"boundary=\"?([^\s\";,]{1,70})")


def _without_boundary(headers: Mapping[bytes, bytes], body: bytes) -> bytes:
    """A form without what separates its parts: clients make that up anew for every try."""
    found = _BOUNDARY.search(headers.get(b"content-type", b"")) if is_form(headers) else None
    return body.replace(found[1], b"") if found else body


def _fingerprint(scope: Scope, body: bytes, principal: Principal) -> bytes:
    """Another request, or the same one by somebody with other rights, is not answered from the store."""
    models = None if principal.models is None else sorted(principal.models)
    said = [
        scope["method"],
        scope["path"].rstrip("/"),
        scope["query_string"],
        principal.project_id,
        principal.role.value,
        sorted(principal.scopes),
        models,
        _without_boundary(dict(scope["headers"]), body),
    ]
    return hashlib.sha256(msgspec.msgpack.encode(said)).digest()


async def _replay(record: _Record, fingerprint: bytes, exchange: Exchange) -> None:
    if record.fingerprint != fingerprint:
        raise _conflict(
            "This Idempotency-Key was used with another request, or with other rights; use a new one.",
            "reused",
        )
    if record.state == "running":
        raise _conflict("A request with this Idempotency-Key is still running.", "in_flight")
    if record.state == "unkept":
        raise _conflict(
            "The first request with this Idempotency-Key succeeded. Its answer is not kept, because it held "
            "a secret, which is shown once, or was too large.",
            "not_replayable",
        )
    headers = [*record.headers, *exchange.common_headers(), (b"idempotent-replayed", b"true")]
    await exchange.write({"type": "http.response.start", "status": record.status, "headers": headers})
    await exchange.write({"type": "http.response.body", "body": record.body})


def _conflict(message: str, reason: str) -> Conflict:
    return Conflict(message, param="Idempotency-Key", code=f"idempotency_key_{reason}")


class _Recorder:
    """Passes an answer on and keeps a copy, as long as it is not too large."""

    def __init__(self, send: Send, on_whole: Callable[[_Recorder], Awaitable[None]]) -> None:
        self._send = send
        self._on_whole = on_whole
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_broken = False
        self.is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            piece = message.get("body", b"")
            self._size += len(piece)
            if self._size <= _MAX_KEPT_BYTES:
                self._pieces.append(piece)
            else:
                self._pieces.clear()
            if not message.get("more_body", False):
                self.is_whole = True
                # The last event, which may have been written together with others.
                self._is_broken = piece.rstrip(b"\n").rpartition(b"\n\n")[2].startswith(_FAILURES)
                # Before its end leaves: a client that asks again at once must find it.
                await self._on_whole(self)
        await self._send(message)

    def record(self, fingerprint: bytes) -> _Record | None:
        """What to keep; None where a second try has to be executed."""
        if self._status in _NOT_KEPT or self._status >= 500 or self._is_broken:
            return None
        if (b"cache-control", b"no-store") in self._headers or self._size > _MAX_KEPT_BYTES:
            return _Record("unkept", fingerprint)
        headers = tuple((name, value) for name, value in self._headers if not _OWN_HEADER.match(name))
        return _Record("done", fingerprint, self._status, headers, b"".join(self._pieces))


def _replaying(body: bytes) -> Receive:
    """The body that was read already, then the hang-up that may come."""
    has_given = False

    async def receive() -> dict[str, Any]:
        nonlocal has_given
        if has_given:
            # Whoever asks again waits for a disconnect; `answer` learns of it through the connection.
            await asyncio.Event().wait()
        has_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
