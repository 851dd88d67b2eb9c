"""What a client wants painted: `POST /v1/images/generations`, `/edits` and `/variations`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Task = Literal["generate", "edit", "variation"]
MAX_PROMPT_CHARS = 32_000


class ImageRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/images/generations`; edits and variations have pictures in `Call.media` besides."""

    prompt: Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)] = ""
    model: str = ""
    n: Annotated[int, Meta(ge=1, le=10)] = 1
    size: Annotated[str, Meta(pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$")] | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
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
    seed: Annotated[int, Meta(ge=0, lt=2**63)] | None = None
    steps: Annotated[int, Meta(ge=1, le=200)] | None = None
    guidance: Annotated[float, Meta(ge=0, le=50)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=MAX_PROMPT_CHARS)] | None = None
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    """How much an edit may change: 0 nothing, 1 everything."""
    scale: Annotated[int, Meta(ge=2, le=4)] | None = None
    """Of an upscaling model: how many times wider."""
    preserve_color: bool | None = None
