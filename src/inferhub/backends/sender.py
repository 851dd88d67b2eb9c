"""Sends one request with one of the operator's keys, and with another where that one is refused.

Every remote backend opens one inside `load`, with its vendor's `read_error` and the name of the key's header.
Only what the upstream refused for the key's sake, before any byte of an answer, is sent again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from yarl import URL

from inferhub.backends.credentials import KeyRing, Lease
from inferhub.backends.http import Answer, HttpUpstream, Refusal
from inferhub.backends.remote import RemoteOptions
from inferhub.core.call import Call
from inferhub.core.errors import InferHubError, UpstreamDenied, UpstreamRateLimited

_JSON = "application/json"


class ReadError(Protocol):
    """(status, headers, body, secrets) → the error that a vendor means by it."""

    def __call__(
        self, status: int, headers: Mapping[str, str], body: bytes, secrets: Collection[str], /
    ) -> InferHubError: ...


class Sender:
    """The way to one upstream. Open it on the event loop that will use it, and close it there."""

    def __init__(
        self,
        options: RemoteOptions,
        *,
        name: str,
        key_header: str,
        headers: Mapping[str, str],
        read_error: ReadError,
        header_secrets: tuple[str, ...] = (),
    ) -> None:
        """`name` is the model's, for the log and for keys; `headers` are sent with every request. A key under
        `authorization` is sent as a bearer token."""
        self._ring: KeyRing | None = None
        if options.keys or options.api_key_file:
            file = Path(options.api_key_file) if options.api_key_file else None
            self._ring = KeyRing(options.keys, name=name, file=file)
        self._suffix = blake2b(name.encode(), digest_size=4).hexdigest()
        self._key_header = key_header
        self._key_prefix = "Bearer " if key_header == "authorization" else ""
        self._read_error = read_error
        self._header_secrets = header_secrets
        self._http = HttpUpstream(
            headers=headers,
            connect_timeout_s=options.connect_timeout_s,
            max_connections=options.max_connections,
        )

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not show in a message, whoever sent it."""
        return self._header_secrets if self._ring is None else (*self._ring.secrets, *self._header_secrets)

    async def close(self) -> None:
        await self._http.close()

    def _idempotency_key(self, call: Call) -> str:
        """The same for the same again. Another model, and the rest of an answer, are other requests, which an
        upstream that remembers keys, as another InferHub does, would refuse under the same one."""
        key = f"{call.key}-{self._suffix}"
        return f"{key}-{call.attempt}" if call.resume else key

    @asynccontextmanager
    async def open(
        self, call: Call, url: URL, body: bytes, headers_timeout_s: float, *, kind: str = _JSON
    ) -> AsyncIterator[Answer]:
        """An answer whose head says 200. Its connection and its key are given back at the end."""
        headers = {"idempotency-key": self._idempotency_key(call), "content-type": kind}
        if call.traceparent:
            headers["traceparent"] = call.traceparent
        lease: Lease | None = None
        try:
            if self._ring is None:
                answer = await self._post(url, body, headers, headers_timeout_s)
            else:
                lease, answer = await self._post_with_key(self._ring, url, body, headers, headers_timeout_s)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            if lease is not None:
                lease.release()

    async def ask(self, call: Call, url: URL, body: bytes, headers_timeout_s: float) -> bytes:
        """An answer that is read whole."""
        async with self.open(call, url, body, headers_timeout_s) as answer:
            return await answer.read_whole()

    async def _post_with_key(
        self, ring: KeyRing, url: URL, body: bytes, headers: dict[str, str], headers_timeout_s: float
    ) -> tuple[Lease, Answer]:
        tried: set[str] = set()
        forbidden: list[Lease] = []
        last: InferHubError | None = None
        while True:
            lease = await _take(ring, tried, last)
            tried.add(lease.key)
            sent = {**headers, self._key_header: self._key_prefix + lease.key}
            try:
                answer = await self._post(url, body, sent, headers_timeout_s)
            except (UpstreamDenied, UpstreamRateLimited) as error:
                lease.release()
                last = error
                if isinstance(error.__cause__, Refusal) and error.__cause__.status == 403:
                    # Perhaps meant for the request; that another key may do it will show that it was the key.
                    forbidden.append(lease)
                else:
                    lease.refused(error)
            except BaseException:
                lease.release()
                raise
            else:
                for other in forbidden:
                    other.refused(UpstreamDenied())
                return lease, answer

    async def _post(self, url: URL, body: bytes, headers: dict[str, str], headers_timeout_s: float) -> Answer:
        try:
            return await self._http.post(url, body, headers, headers_timeout_s)
        except Refusal as refusal:
            raise self._read_error(refusal.status, refusal.headers, refusal.body, self.secrets) from refusal


async def _take(ring: KeyRing, tried: set[str], last: InferHubError | None) -> Lease:
    """The next key. Where there is none, what the upstream said last, or how long to wait."""
    try:
        return await ring.take(tried)
    except UpstreamDenied:
        if last is None:
            raise
        raise last from last.__cause__
    except UpstreamRateLimited as waiting:
        raise waiting from last
