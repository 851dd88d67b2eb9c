"""Pictures as addresses: a finished picture is kept, and its address goes up in its place.

A ring outside the cache, so that what the cache repeats gets an address as fresh as any other.
Where pictures are kept, and how addresses are signed, is the port's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from inferhub.core.call import Call, Chunk, Delta, Emit, Handler
from inferhub.modalities.image import ImageDelta, ImageRequest, wants_url

Keep = Callable[[str, bytes, str], Awaitable[str]]
"""(tenant, file, `png`, `jpeg` or `webp`) → its address. Raises `StoreFailed`."""


class Links:
    """The ring."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        request = call.request
        if not isinstance(request, ImageRequest) or not wants_url(request):
            await inner(call, emit)
            return
        held: list[Chunk] = []

        async def hold(chunk: Chunk) -> None:
            held.append(chunk)

        await inner(call, hold)
        # After the call: a store that fails is not a fault of whoever painted.
        for chunk in held:
            await emit(await self._linked(chunk, call, request))

    async def _linked(self, chunk: Chunk, call: Call, request: ImageRequest) -> Chunk:
        if not isinstance(chunk, Delta) or not isinstance(chunk.payload, ImageDelta):
            return chunk
        image = chunk.payload
        if image.kind != "image" or not image.data:
            return chunk
        url = await self._keep(call.principal.tenant_id, image.data, request.output_format)
        return replace(chunk, payload=msgspec.structs.replace(image, data=b"", url=url))
