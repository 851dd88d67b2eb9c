"""F4: the typed asynchronous client of an InferHub server; the CLI and the tests use it.

The same nouns go in and come out as in `modalities`; every failure is an error of `core.errors`.
It keeps no state but a connection pool, never retries, and never logs or shows its key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec

from inferhub.client.audio import Audio
from inferhub.client.pictures import Pictures
from inferhub.client.pieces import ChatChunk, CompletionChunk, ModelCard, ServedSpec
from inferhub.client.session import Session, Timeouts, base_address, decode, read
from inferhub.modalities.chat import ChatRequest, ChatResponse
from inferhub.modalities.completion import CompletionRequest, CompletionResponse
from inferhub.modalities.embedding import EmbeddingRequest, EmbeddingResponse

__all__ = ["ChatChunk", "Client", "CompletionChunk", "ModelCard", "ServedSpec", "Timeouts", "base_address"]


class _ModelList(msgspec.Struct):
    data: list[ModelCard]


class Client:
    """An open connection pool to one server: `async with Client(url, key) as client`."""

    def __init__(self, url: str, key: str | None = None, *, timeouts: Timeouts | None = None) -> None:
        """`url` is the server's address, with or without `/v1`. Raises `Invalid` and `Unauthenticated`."""
        self._session = Session(url, key, timeouts=timeouts)
        self.audio = Audio(self._session)
        """Speech: heard and spoken."""
        self.pictures = Pictures(self._session)
        """Looked at and made."""

    @property
    def url(self) -> str:
        return self._session.url

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.__aexit__()

    async def chat(self, request: ChatRequest) -> ChatResponse:
        """The whole answer at once; `request.stream` is ignored."""
        return await self._session.infer("chat/completions", request, ChatResponse)

    def stream_chat(self, request: ChatRequest) -> AbstractAsyncContextManager[AsyncIterator[ChatChunk]]:
        """`async with client.stream_chat(r) as chunks`; leaving the block early cancels the call."""
        return self._session.stream("chat/completions", request, ChatChunk)

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        """The whole answer at once; `request.stream` is ignored."""
        return await self._session.infer("completions", request, CompletionResponse)

    def stream_complete(
        self, request: CompletionRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[CompletionChunk]]:
        """Like `stream_chat`."""
        return self._session.stream("completions", request, CompletionChunk)

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """Vectors in the order of the inputs."""
        return await self._session.infer("embeddings", request, EmbeddingResponse)

    async def models(self) -> list[ModelCard]:
        return decode(await self._session.body("GET", "/v1/models"), _ModelList).data

    async def model(self, name: str) -> ModelCard:
        """Raises `ModelNotFound`."""
        return decode(await self._session.body("GET", f"/v1/models/{quote(name, safe='')}"), ModelCard)

    async def spec(self) -> ServedSpec:
        """The spec in force. Needs a key of role admin, as do all that follow but `ready` and `version`."""
        async with self._session.request("GET", "/admin/v1/spec") as response:
            return await _served_spec(response)

    async def put_spec(self, text: str, *, if_revision: int | None = None) -> ServedSpec:
        """Replace the spec. Raises `SetupError` naming every problem, `Conflict` for another revision."""
        headers = {"Content-Type": "application/yaml"}
        if if_revision is not None:
            headers["If-Match"] = f'"{if_revision}"'
        async with self._session.request("PUT", "/admin/v1/spec", text.encode(), headers) as response:
            return await _served_spec(response)

    async def workers(self) -> list[dict[str, Any]]:
        """Each worker's models, load, devices and free memory."""
        listing = decode(await self._session.body("GET", "/admin/v1/workers"), dict[str, Any])
        return list(listing.get("data", ()))

    async def decisions(self, request_id: str) -> list[dict[str, Any]]:
        """Why calls with this `x-request-id` went where they went, the newest first. Raises `NotFound` where
        the process that answers remembers none."""
        path = f"/admin/v1/decisions/{quote(request_id, safe='')}"
        return list(decode(await self._session.body("GET", path), dict[str, Any]).get("data", ()))

    async def ready(self) -> Mapping[str, Any]:
        """The server's own account of its readiness; `ready` says whether it serves."""
        async with self._session.request("GET", "/readyz?verbose", accept=(200, 503)) as response:
            return decode(await read(response), dict[str, Any])

    async def version(self) -> str:
        return str(decode(await self._session.body("GET", "/version"), dict[str, Any]).get("version"))


async def _served_spec(response: aiohttp.ClientResponse) -> ServedSpec:
    tag = response.headers.get("ETag", "").strip('"')
    return ServedSpec((await read(response)).decode(errors="replace"), int(tag) if tag.isdigit() else None)
