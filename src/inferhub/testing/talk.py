"""Short ways for tests to ask one server over raw HTTP: a request in one line, its answer in full.

Stands on `raw_http`. It checks nothing by itself but that streams are well-formed.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from inferhub.testing.raw_http import (
    TIMEOUT_S,
    Answer,
    Connection,
    Event,
    Head,
    connect,
    exchange,
    request_bytes,
)
from inferhub.testing.upstream_process import trace_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class Opened:
    """A call whose answer has begun, or is still waited for."""

    connection: Connection
    request_id: str

    async def head(self, timeout_s: float = TIMEOUT_S) -> Head:
        return await self.connection.head(timeout_s)


class Talk:
    """One server and one key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, headers)

    async def post(self, path: str, body: Any, **headers: str) -> Answer:
        """`body` is bytes, sent as they are, or becomes JSON."""
        return await self.ask("POST", path, headers, body)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = b""
    ) -> Answer:
        """Any request, with the key unless `headers` has an `authorization` of its own."""
        return await exchange(self.url, self.request(method, path, headers, body), has_body=method != "HEAD")

    async def chat(self, model: str, content: str = "one two three", **more: Any) -> Answer:
        return await self.post(CHAT, chat_body(model, content, **more))

    async def stream(self, model: str, content: str = "one two three", **more: Any) -> list[Event]:
        """Every event and comment of a chat stream that begins well."""
        return await self.stream_of(CHAT, chat_body(model, content, stream=True, **more))

    async def stream_of(self, path: str, body: Mapping[str, Any]) -> list[Event]:
        async with self.opened(path, body) as call:
            head = await call.head()
            assert head.status == 200, (head, await call.connection.body(head))
            return [event async for event in call.connection.events(head)]

    @asynccontextmanager
    async def opened(self, path: str, body: Any, **headers: str) -> AsyncIterator[Opened]:
        """A call that was sent; leaving the block hangs up. Its `x-request-id` is known beforehand.

        It does not reach upstreams, but the trace does: `Upstream.records` finds the call by it.
        """
        request_id = headers.setdefault("x-request-id", f"test_{secrets.token_hex(8)}")
        headers.setdefault("traceparent", trace_of(request_id))
        async with connect(self.url) as connection:
            await connection.send(self.request("POST", path, headers, body))
            yield Opened(connection, request_id)

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Any = b"",
        *,
        version: str = "HTTP/1.1",
    ) -> bytes:
        fields = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        fields.setdefault("authorization", f"Bearer {self.key}")
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request_bytes(method, path, fields, raw, version=version)


def chat_body(model: str, content: str = "one two three", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def chunks(events: list[Event]) -> list[dict[str, Any]]:
    """The JSON of the events, without comments and without `[DONE]`."""
    return [event.json for event in events if event.data not in (None, "[DONE]")]


def content(events: list[Event]) -> str:
    """What the first choice of a chat stream said."""
    choices = (choice for chunk in chunks(events) for choice in chunk.get("choices", ()))
    return "".join(choice["delta"].get("content") or "" for choice in choices if choice["index"] == 0)
