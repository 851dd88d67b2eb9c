"""Text → phonemes of Kokoro's alphabet, a language at a time. Called in a thread.

English is read by hibari's rules and dictionaries (Apache-2.0), Spanish, French, Italian, Portuguese and
Hindi by `espeak`, Japanese and Chinese by `eastern`; what is not installed is named in the error.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Container
from typing import Any

from inferhub.backends.speaking.voices import plain_language
from inferhub.core.errors import Invalid

MAX_TOKENS = 400
"""Of one phrase. Kokoro takes 510; hibari reads well to 400, and shorter phrases are heard sooner."""

_LONG_NUMBER = re.compile(r"\d[\d,]{17,}")
"""Has a digit more than there are names for numbers: it is read digit by digit, as people read it."""

Reader = Callable[[str], str]


class English:
    """American and British, each loaded when it is first needed."""

    def __init__(self) -> None:
        self._readers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def reader(self, tag: str) -> Any:
        variant = "en-GB" if tag.lower() in ("en-gb", "en-uk") else "en-US"
        with self._lock:
            if variant not in self._readers:
                from hibari.g2p import G2P

                self._readers[variant] = G2P(british=variant == "en-GB")
            return self._readers[variant]

    def phonemes(self, text: str, tag: str) -> str:
        text = _LONG_NUMBER.sub(lambda found: " ".join(found[0].replace(",", "")), text)
        # Its lines are sentences to it.
        said: str = self.reader(tag)(" ".join(text.split()))
        return said


class Readers:
    """Every language that there is a reader for."""

    def __init__(self, english: English) -> None:
        self._english = english

    def phonemes(self, text: str, tag: str) -> str:
        """Raises `SetupError` with the package to install, and `Invalid` for a language that nobody reads."""
        language = plain_language(tag)
        if language == "en":
            return self._english.phonemes(text, tag)
        if language in ("es", "fr", "it", "pt", "hi"):
            from inferhub.backends.speaking import espeak

            return espeak.phonemes(text, tag)
        if language in ("ja", "zh"):
            from inferhub.backends.speaking import eastern

            return eastern.phonemes(text, language)
        raise Invalid(f"Nobody here reads {tag!r}.", param="language")


def fitting(phonemes: str, alphabet: Container[str], most: int) -> list[str]:
    """Phrases of at most `most` symbols that the engine knows, cut at marks or blanks where there are any."""
    known = "".join(symbol for symbol in phonemes if symbol in alphabet).strip()
    phrases: list[str] = []
    while len(known) > most:
        cut = max((known.rfind(mark, most // 2, most) for mark in ".!?;:,—… "), default=-1)
        end = cut + 1 if cut > 0 else most
        phrases.append(known[:end].strip())
        known = known[end:].lstrip()
    phrases.append(known)
    return [phrase for phrase in phrases if any(symbol.isalpha() for symbol in phrase)]
