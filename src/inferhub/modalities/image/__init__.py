"""Images: a prompt, a picture or both in, pictures out."""

from __future__ import annotations

from collections.abc import Mapping

from inferhub.core.usage import Usage
from inferhub.modalities.base import FileField, Modality
from inferhub.modalities.image.answer import ImageData, ImageResponse, ImageUsage, fold, writer
from inferhub.modalities.image.deltas import ImageDelta
from inferhub.modalities.image.request import (
    MAX_PICTURES,
    MAX_PIXELS,
    ImageRequest,
    OutputFormat,
    check,
    size_of,
    wants_url,
)

__all__ = [
    "EDIT_FILES",
    "MAX_PICTURES",
    "MAX_PIXELS",
    "MODALITY",
    "VARIATION_FILES",
    "ImageData",
    "ImageDelta",
    "ImageRequest",
    "ImageResponse",
    "ImageUsage",
    "OutputFormat",
    "check",
    "size_of",
    "wants_url",
]

EDIT_FILES = {
    "image": FileField("image", most=MAX_PICTURES),
    "mask": FileField("image", required=False),
}
VARIATION_FILES = {"image": FileField("image")}

_USUAL_PIXELS = 1536 * 1536
"""The largest that models paint where nobody says how large."""

_CONTROLS = ("negative_prompt", "seed", "steps", "guidance", "strength", "scale", "preserve_color")
"""Parameters beyond OpenAI's, each with a feature of its name: a model that cannot honour one refuses it."""

_HINTS = ("quality", "style", "moderation", "input_fidelity")
"""Of OpenAI's: left out, and reported, where the model has no feature of the name."""


def _requires(request: ImageRequest) -> Mapping[str, str]:
    needed = {name: name for name in _CONTROLS if getattr(request, name) is not None}
    needed[request.task] = "prompt" if request.task == "generate" else "image"
    if request.background == "transparent":
        needed["transparent"] = "background"
    if request.n > 1:
        needed["n"] = "n"
    return needed


def _wishes(request: ImageRequest) -> Mapping[str, frozenset[str]]:
    return {name: frozenset({name}) for name in _HINTS if getattr(request, name) is not None}


def _estimate(request: ImageRequest, _body_bytes: int) -> Usage:
    """An edit may be as large as the picture that came, or larger; what it is, only its decoder knows."""
    size = size_of(request)
    if size is not None:
        pixels = size[0] * size[1]
    else:
        pixels = _USUAL_PIXELS if request.task == "generate" else MAX_PIXELS
    return Usage(images=request.n, pixels=request.n * pixels, source="estimated")


MODALITY = Modality(
    name="image",
    path="/v1/images/generations",
    summary="Make pictures from a text",
    request=ImageRequest,
    delta=ImageDelta,
    response=ImageResponse,
    check=check,
    requires=_requires,
    wishes=_wishes,
    estimate=_estimate,
    cap=None,
    fold=fold,
    writer=writer,
    features=("stream", "generate", "edit", "variation", "mask", "transparent", "n", *_CONTROLS, *_HINTS),
    example={"prompt": "A red circle"},
    howto="docs/howto/draw.md",
)
