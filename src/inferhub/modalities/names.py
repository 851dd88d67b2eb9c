"""What people call the modalities: `asr` is `transcription`. For settings and flags, never for requests."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from inferhub.core.errors import SetupError
from inferhub.modalities import modalities

_MEANT = {
    "llm": ("chat", "completion", "token_count"),
    "chat": ("chat", "completion", "token_count"),
    "asr": ("transcription",),
    "stt": ("transcription",),
    "tts": ("speech",),
    "ocr": ("vision",),
    "vqa": ("vision",),
    "images": ("image",),
    "embeddings": ("embedding",),
}
"""One conversation needs all three: the others of its names are the same model asked in another way."""


def modalities_named(names: Iterable[str]) -> frozenset[str] | None:
    """The modalities meant, or None for no names: all of them. Raises `SetupError` for an unknown one."""
    known = {name: (name,) for name in modalities()} | _MEANT
    meant: set[str] = set()
    wanted = [name.strip().casefold() for name in names]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise SetupError(
                f"There is no modality {name[:40]!r}; there are: {', '.join(sorted(known))}.{guess}",
                param="modalities",
            )
        meant.update(known[name])
    return frozenset(meant) if wanted else None
