"""What comes back of a prompt: progress, previews, and pictures."""

from __future__ import annotations

from typing import Literal

import msgspec


class ImageDelta(msgspec.Struct, omit_defaults=True):
    kind: Literal["progress", "partial", "image"]
    index: int = 0
    """Of `image`: which of the `n`. Of `partial`: which preview."""
    data: bytes = b""
    """The whole file, in the format that was asked for."""
    width: int = 0
    height: int = 0
    step: int = 0
    steps: int = 0
    revised_prompt: str | None = None
    url: str = ""
    """Where the file lies, of a vendor that sends an address instead of `data`."""
