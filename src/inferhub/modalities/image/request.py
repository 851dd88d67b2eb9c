"""What a client wants painted: `POST /v1/images/generations`, `/edits` and `/variations`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.core.errors import Invalid

Task = Literal["generate", "edit", "variation"]
OutputFormat = Literal["png", "jpeg", "webp"]
MAX_PROMPT_CHARS = 32_000
MAX_PICTURES = 16
"""That one edit may take in."""
MAX_PIXELS = 4096 * 4096
"""Of one picture that is made."""

_ALWAYS_BASE64 = ("gpt-image", "chatgpt-image")
_USUALLY_URL = ("dall-e",)
"""Beginnings of OpenAI's names, whose clients expect what they get there."""


class ImageRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/images/generations`; edits and variations have pictures in `Call.media` besides."""

    prompt: Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)] = ""
    model: str = ""
    n: Annotated[int, Meta(ge=1, le=10)] = 1
    size: Annotated[str, Meta(pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$")] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: OutputFormat = "png"
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    quality: str | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    moderation: Literal["low", "auto"] | None = None
    input_fidelity: Literal["high", "low"] | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    stream: bool | None = None
    style: str | None = None
    """OpenAI's `vivid` and `natural`; of a style transfer model, the name of the style."""
    user: str | None = None
    # Beyond OpenAI's:
    task: Task = "generate"
    """Set by the address."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    steps: Annotated[int, Meta(ge=1, le=200)] | None = None
    guidance: Annotated[float, Meta(ge=0, le=50)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)] | None = None
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    """How much an edit may change: 0 nothing, 1 everything."""
    scale: Annotated[int, Meta(ge=2, le=4)] | None = None
    """Of an upscaling model: how many times wider."""
    preserve_color: bool | None = None


def size_of(request: ImageRequest) -> tuple[int, int] | None:
    """(width, height) where the client chose one."""
    if request.size in (None, "auto"):
        return None
    width, _, height = str(request.size).partition("x")
    return int(width), int(height)


def wants_url(request: ImageRequest) -> bool:
    """Whether the client expects addresses instead of pictures."""
    if request.response_format is None:
        return request.model.startswith(_USUALLY_URL) and not request.stream
    return request.response_format == "url"


def check(request: ImageRequest) -> None:
    """Raises `Invalid` for what no model can do."""
    if request.task == "generate" and not request.prompt.strip():
        raise Invalid(
            "'prompt' is required: say what the picture shows.",
            param="prompt",
            code="missing_required_parameter",
        )
    size = size_of(request)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise Invalid(
            f"'size' {request.size} has {size[0] * size[1]} pixels; at most {MAX_PIXELS} are made.",
            param="size",
        )
    _check_format(request)
    _check_way_back(request)


def _check_format(request: ImageRequest) -> None:
    if request.output_format == "png" and request.output_compression not in (None, 100):
        raise Invalid(
            "'output_compression' is for 'jpeg' and 'webp'; a PNG is never compressed with loss.",
            param="output_compression",
        )
    if request.output_format == "jpeg" and request.background == "transparent":
        raise Invalid("A JPEG cannot be transparent; take 'png' or 'webp'.", param="background")


def _check_way_back(request: ImageRequest) -> None:
    """How the picture reaches the client."""
    if request.response_format == "url" and request.model.startswith(_ALWAYS_BASE64):
        raise Invalid(
            f"'response_format' cannot be 'url' with {request.model!r}: its pictures always come as base64.",
            param="response_format",
            code="unknown_parameter",
        )
    if request.stream and request.response_format == "url":
        raise Invalid(
            "A stream sends pictures as base64; leave 'response_format' out.", param="response_format"
        )
    if request.partial_images and not request.stream:
        raise Invalid("'partial_images' needs 'stream': true.", param="partial_images")
