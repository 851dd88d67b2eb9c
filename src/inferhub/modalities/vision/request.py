"""What a client wants to know of a picture: `POST /v1/vision/analyze`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

Feature = Literal["text", "objects", "labels", "colors", "description"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


class VisionRequest(msgspec.Struct, kw_only=True):
    """Body, or form with the file `image`: the picture is `Call.media[0]`, or `image`, a data or web URL."""

    model: str = ""
    image: str | None = None
    features: list[Feature] | None = None
    """All where none is named."""
    question: Annotated[str, Meta(max_length=4096)] | None = None
    min_score: Annotated[float, Meta(ge=0, le=1)] | None = None
