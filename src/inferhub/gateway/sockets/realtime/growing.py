"""Partials that may change, told to clients that only know text that grows. Pure; one for each utterance."""

from __future__ import annotations

import re

_WORD = re.compile(r"\s*\S+")


class Growing:
    """Tells what two partials in a row agree on, which rarely changes any more."""

    def __init__(self) -> None:
        self._told = ""
        self._last: list[str] = []

    def partial(self, text: str) -> str:
        """What may be told now, beyond what was told already."""
        words = _WORD.findall(text)
        agreed = ""
        for before, now in zip(self._last, words, strict=False):
            if before != now:
                break
            agreed += now
        self._last = words
        return self._tell(agreed)

    def final(self, text: str) -> str:
        """The rest. Nothing, where what was told turned out to be wrong: the whole transcript follows."""
        return self._tell(text)

    def _tell(self, text: str) -> str:
        if not text.startswith(self._told):
            return ""
        rest = text[len(self._told) :]
        self._told = text
        return rest
