"""How pictures are answered: as JSON with base64 or addresses, or as OpenAI's events of a stream."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.image.deltas import ImageDelta
from inferhub.modalities.image.request import ImageRequest, Task

_EVENTS: dict[Task, str] = {
    "generate": "image_generation",
    "edit": "image_edit",
    "variation": "image_variation",
}


class ImageData(msgspec.Struct, omit_defaults=True):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class TokenDetails(msgspec.Struct):
    text_tokens: int = 0
    image_tokens: int = 0


class ImageUsage(msgspec.Struct):
    """OpenAI counts tokens; models that have none count pictures and pixels."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails
    images: int
    pixels: int


class ImageResponse(msgspec.Struct):
    """Answer of `POST /v1/images/generations`, `/edits` and `/variations`."""

    created: int
    data: list[ImageData]
    output_format: str
    usage: ImageUsage


def fold(request: ImageRequest, envelope: Envelope, deltas: Sequence[ImageDelta], usage: Usage) -> bytes:
    found = sorted((delta for delta in deltas if delta.kind == "image"), key=lambda delta: delta.index)
    data = [_data(delta, envelope.base_url) for delta in found]
    return msgspec.json.encode(ImageResponse(envelope.created, data, request.output_format, _usage(usage)))


def _data(delta: ImageDelta, base_url: str) -> ImageData:
    if delta.url:
        url = base_url + delta.url if delta.url.startswith("/") else delta.url
        return ImageData(url=url, revised_prompt=delta.revised_prompt)
    return ImageData(_base64(delta.data), revised_prompt=delta.revised_prompt)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _usage(usage: Usage) -> ImageUsage:
    return ImageUsage(
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        TokenDetails(usage.input_tokens),
        usage.images,
        usage.pixels,
    )


def writer(request: ImageRequest, envelope: Envelope) -> ImageWriter:
    return ImageWriter(request, envelope)


class ImageWriter:
    """Writes the events. The last picture waits for the usage, which its event has to name."""

    def __init__(self, request: ImageRequest, envelope: Envelope) -> None:
        self._request = request
        self._created = envelope.created
        self._name = _EVENTS[request.task]
        self._last: ImageDelta | None = None

    def delta(self, payload: ImageDelta) -> bytes:
        match payload.kind:
            case "progress":
                return self._event("progress", {"step": payload.step, "steps": payload.steps})
            case "partial":
                return self._event(
                    "partial_image", {**self._picture(payload), "partial_image_index": payload.index}
                )
        before, self._last = self._last, payload
        return b"" if before is None else self._completed(before, Usage())

    def passed(self, raw: bytes) -> None:
        """Nothing to remember: an event forwarded as it came says everything about itself."""

    def end(self, usage: Usage) -> bytes:
        return b"" if self._last is None else self._completed(self._last, usage)

    def fail(self, problem: Problem) -> bytes:
        return b"event: error\n" + _line({"type": "error", "error": msgspec.to_builtins(problem)})

    def _completed(self, delta: ImageDelta, usage: Usage) -> bytes:
        return self._event("completed", {**self._picture(delta), "usage": msgspec.to_builtins(_usage(usage))})

    def _picture(self, delta: ImageDelta) -> dict[str, Any]:
        request = self._request
        return {
            "b64_json": _base64(delta.data),
            "created_at": self._created,
            "size": f"{delta.width}x{delta.height}" if delta.width else request.size or "auto",
            "quality": request.quality or "auto",
            "background": request.background or "auto",
            "output_format": request.output_format,
        }

    def _event(self, kind: str, body: dict[str, Any]) -> bytes:
        name = f"{self._name}.{kind}"
        return b"event: " + name.encode() + b"\n" + _line({"type": name, **body})


def _line(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
