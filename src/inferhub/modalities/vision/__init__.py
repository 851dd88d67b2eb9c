"""Vision: a picture in, what can be seen on it out, and an answer to a question about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, FileField, Modality
from inferhub.modalities.vision.deltas import VisionDelta
from inferhub.modalities.vision.request import VisionRequest

__all__ = ["MODALITY", "VisionDelta", "VisionRequest"]


class VisionResponse(msgspec.Struct):
    model: str
    facts: VisionDelta


def _check(request: VisionRequest) -> None:
    """Nothing yet that types do not say."""


def _requires(request: VisionRequest) -> Mapping[str, str]:
    return {}


def _estimate(request: VisionRequest, body_bytes: int) -> Usage:
    return Usage(images=1, pixels=4 * 1024 * 1024, source="estimated")


def _fold(request: VisionRequest, envelope: Envelope, deltas: Sequence[VisionDelta], usage: Usage) -> bytes:
    if len(deltas) != 1:
        raise UpstreamFailed("The model did not say what it sees.")
    return msgspec.json.encode(VisionResponse(envelope.model, deltas[0]))


MODALITY = Modality(
    name="vision",
    path="/v1/vision/analyze",
    summary="Describe a picture, and answer questions about it",
    request=VisionRequest,
    delta=VisionDelta,
    response=VisionResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("text", "objects", "labels", "colors", "description", "question"),
    example={},
    files={"image": FileField("image", required=False)},
)
