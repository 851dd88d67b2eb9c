"""What is known of a picture. Places are in pixels of the upright picture, as [left, top, right, bottom]."""

from __future__ import annotations

from typing import Literal

import msgspec

Box = tuple[float, float, float, float]


class TextLine(msgspec.Struct):
    text: str
    score: float
    box: Box


class SeenObject(msgspec.Struct, omit_defaults=True):
    name: str
    score: float
    box: Box
    color: str | None = None


class Label(msgspec.Struct):
    name: str
    score: float


class Color(msgspec.Struct):
    name: str
    hex: str
    share: float
    """Of the picture, 0 to 1."""


class Reply(msgspec.Struct, omit_defaults=True):
    """An answer to the question, made by rules from the facts."""

    text: str
    """A whole sentence."""
    value: str
    """The answer alone: `3`, `red`, `yes`, `$1,249.50`."""
    kind: Literal["count", "color", "text", "yes_no", "object", "label", "description", "unknown"]
    confidence: float


class VisionDelta(msgspec.Struct, omit_defaults=True):
    """All facts of one picture, at once."""

    width: int
    height: int
    text: list[TextLine] = []
    objects: list[SeenObject] = []
    labels: list[Label] = []
    colors: list[Color] = []
    description: str = ""
    reply: Reply | None = None
