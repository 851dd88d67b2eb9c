"""`prefix`: how much of the prompt an endpoint has read already, so that its engine may skip it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from inferhub.routing.prefix import MARKS, share


@cache
def terms(total: int) -> Sequence[float] | None:
    """The term of who has so many of the `total` hashes of a prompt, by their number. A prompt that is too
    short to have any says nothing about anybody."""
    if not total:
        return None
    return tuple(share(matched, total) for matched in range(len(MARKS) + 1))
