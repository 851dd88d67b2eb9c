"""Images: a prompt, a picture or both in, pictures out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.image.deltas import ImageDelta
from inferhub.modalities.image.request import ImageRequest

__all__ = ["MODALITY", "ImageDelta", "ImageRequest"]


class ImageData(msgspec.Struct, omit_defaults=True):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class ImageResponse(msgspec.Struct):
    created: int
    data: list[ImageData]


def _check(request: ImageRequest) -> None:
    """Nothing yet that types do not say."""


def _requires(request: ImageRequest) -> Mapping[str, str]:
    return {request.task: "prompt" if request.task == "generate" else "image"}


def _estimate(request: ImageRequest, body_bytes: int) -> Usage:
    return Usage(images=request.n, pixels=request.n * 1024 * 1024, source="estimated")


def _fold(request: ImageRequest, envelope: Envelope, deltas: Sequence[ImageDelta], usage: Usage) -> bytes:
    found = sorted((d for d in deltas if d.kind == "image"), key=lambda d: d.index)
    data = [ImageData(base64.b64encode(d.data).decode(), revised_prompt=d.revised_prompt) for d in found]
    return msgspec.json.encode(ImageResponse(envelope.created, data))


MODALITY = Modality(
    name="image",
    path="/v1/images/generations",
    summary="Make pictures from a text",
    request=ImageRequest,
    delta=ImageDelta,
    response=ImageResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("stream", "generate", "edit", "variation", "mask", "seed"),
    example={"prompt": "A red circle"},
)
