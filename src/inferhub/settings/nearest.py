"""Finds the name somebody probably meant. Pure; used by every refusal of an unknown name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, or None when nothing is close. Case is ignored."""
    by_folded = {name.casefold(): name for name in names}
    # A cap, because the comparison is quadratic and `word` may come from a client.
    close = get_close_matches(word[:128].casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """` Did you mean 'x'?` with its leading space, or nothing; to be put after a sentence."""
    name = nearest(word, names)
    return f" Did you mean {name!r}?" if name else ""
