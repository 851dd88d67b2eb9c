"""What comes back of a text: its sound, in the format that was asked for."""

from __future__ import annotations

import msgspec


class SpeechDelta(msgspec.Struct, omit_defaults=True):
    data: bytes
    """The next bytes of the file; all of them joined are the whole file."""
    audio_ms: int = 0
    """How much sound that is."""
    characters: int = 0
    """How much of the text it speaks."""
