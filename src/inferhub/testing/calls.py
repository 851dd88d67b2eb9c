"""Calls for tests: a checked request struct and the bytes it came from, as the gateway would make them."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from inferhub.core.call import Call, Chunk, Media
from inferhub.core.clock import new_id
from inferhub.core.tenancy import Principal, Role
from inferhub.modalities import modalities
from inferhub.modalities.base import wants_stream

TESTER = Principal("ih_tester", Role.ADMIN)


def make_call(
    modality: str,
    model: str = "m",
    *,
    timeout_s: float = 60.0,
    media: tuple[Media, ...] = (),
    **params: Any,
) -> Call:
    """Raises `Invalid` like the gateway does; parameters that are left out come from the example."""
    record = modalities()[modality]
    body = msgspec.json.encode({"model": model, **record.example, **params})
    request = msgspec.json.decode(body, type=record.request)
    record.check(request)
    return Call(
        id=new_id("req"),
        modality=modality,
        model=model,
        request=request,
        body=body,
        principal=TESTER,
        deadline_s=time.monotonic() + timeout_s,
        stream=wants_stream(request),
        media=media,
    )


class Collector:
    """An `emit` that keeps everything."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    async def __call__(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
