"""Vision: a picture in, what can be seen on it out, and an answer to a question about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.errors import Invalid, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, FileField, Modality
from inferhub.modalities.vision.deltas import Box, Color, Label, Reply, SeenObject, TextLine, VisionDelta
from inferhub.modalities.vision.request import FEATURES, Feature, VisionRequest

__all__ = [
    "FEATURES",
    "MODALITY",
    "Box",
    "Color",
    "Feature",
    "Label",
    "Reply",
    "SeenObject",
    "TextLine",
    "VisionDelta",
    "VisionRequest",
    "no_picture",
]

_LARGEST_PIXELS = 50_000_000
"""Of a picture that is looked at; larger ones are refused."""
_FORMATS = "PNG, JPEG, GIF or WebP"
_ONE_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class VisionUsage(msgspec.Struct):
    images: int
    pixels: int


class VisionResponse(msgspec.Struct, omit_defaults=True):
    """A list that is left out was not asked for; an empty one found nothing."""

    id: str
    object: str
    """Always `vision.analysis`."""
    created: int
    model: str
    width: int
    height: int
    usage: VisionUsage
    description: str | None = None
    objects: list[SeenObject] | None = None
    text: list[TextLine] | None = None
    labels: list[Label] | None = None
    colors: list[Color] | None = None
    answer: Reply | None = None


def check(request: VisionRequest) -> None:
    if request.question is not None and not request.question.strip():
        raise Invalid("'question' is empty; ask something, or leave it out.", param="question")
    if request.features == []:
        raise Invalid(
            f"'features' is empty; name some of {', '.join(FEATURES)}, or leave it out.",
            param="features",
            code="empty_array",
        )
    if request.image is not None and not request.image:
        raise Invalid("'image' is empty; send a data URL or a web address.", param="image")


def no_picture() -> Invalid:
    """What to say of a request that has neither the file nor the address of a picture."""
    return Invalid(
        f"There is no picture: send the form's file 'image', or 'image' as a data URL or a web address "
        f"({_FORMATS}).",
        param="image",
        code="missing_required_parameter",
    )


def requires(request: VisionRequest) -> Mapping[str, str]:
    needed: dict[str, str] = dict.fromkeys(request.features or (), "features")
    if request.question is not None:
        needed["question"] = "question"
    return needed


def estimate(request: VisionRequest, body_bytes: int) -> Usage:
    # How large the picture is stands in a file that nobody has opened yet.
    return Usage(images=1, pixels=_LARGEST_PIXELS, source="estimated")


def fold(request: VisionRequest, envelope: Envelope, deltas: Sequence[VisionDelta], usage: Usage) -> bytes:
    if len(deltas) != 1:
        raise UpstreamFailed("The model did not say what it sees.")
    facts = deltas[0]
    asked = frozenset(request.features or FEATURES)
    return msgspec.json.encode(
        VisionResponse(
            envelope.id,
            "vision.analysis",
            envelope.created,
            envelope.model,
            facts.width,
            facts.height,
            VisionUsage(usage.images, usage.pixels),
            **{name: getattr(facts, name) for name in FEATURES if name in asked},
            answer=facts.reply,
        )
    )


MODALITY = Modality(
    name="vision",
    path="/v1/vision/analyze",
    summary="Describe a picture, and answer a question about it",
    request=VisionRequest,
    delta=VisionDelta,
    response=VisionResponse,
    check=check,
    requires=requires,
    estimate=estimate,
    cap=None,
    fold=fold,
    writer=None,
    features=(*FEATURES, "question"),
    example={"image": f"data:image/png;base64,{_ONE_PIXEL}"},
    files={"image": FileField("image", required=False)},
)
