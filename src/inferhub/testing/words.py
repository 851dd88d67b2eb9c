"""How many words of a transcript are wrong. For tests and benchmarks of speech."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """In small letters, without punctuation."""
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def word_error_rate(truth: str, heard: str) -> float:
    """Words put in, left out and mistaken, as a share of the words that were said."""
    said, found = words_of(truth), words_of(heard)
    costs = list(range(len(found) + 1))
    for row, word in enumerate(said, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(found, start=1):
            diagonal, costs[column] = (
                costs[column],
                min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != other)),
            )
    return costs[-1] / max(1, len(said))
