"""Which model, and which of its endpoints, a session belongs to: hashing, breakable under load. Pure.

Called by `choose` for models and by `scheduler` for endpoints. Nothing is stored, so every gateway process
gives the same answer; when one leaves, only its own sessions move.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")

SLACK_CALLS = 8
"""So many more calls than the least busy one, and half as many again, may a model have before its sessions
go elsewhere: a warm prompt cache is worth some waiting, and not all of it."""
_SLACK_FACTOR = 1.5
_POINTS = 8
_MOST_OWNERS = 8


def by_session(
    options: Sequence[T],
    session: str,
    *,
    name: Callable[[T], str],
    weight: Callable[[T], int],
    load: Callable[[T], int],
) -> list[T]:
    """All options, the session's own first, each the owner of as many sessions as its weight says.

    One that is too busy loses its sessions for as long as it is.
    """
    if not options:
        return []
    ranked = sorted(options, key=lambda o: -_score(session, name(o), weight(o)))
    least = min(map(load, options))
    most = max(least + SLACK_CALLS, int(least * _SLACK_FACTOR))
    return sorted(ranked, key=lambda o: load(o) > most)


class Ring:
    """A circle of points, several for each endpoint; a session belongs to the next point after its own.

    Finding it takes the same time however many endpoints there are, unlike asking each for its score.
    """

    __slots__ = ("_ids", "_points")

    def __init__(self, ids: Sequence[str]) -> None:
        pairs = sorted((point, id_) for id_ in ids for point in _points_of(id_))
        self._points = [point for point, _ in pairs]
        self._ids = [id_ for _, id_ in pairs]

    def owners(self, session: str) -> Iterator[str]:
        """Whose it is, and whose it would be without him, and so on for a while."""
        ids = self._ids
        if not ids:
            return
        at = bisect_right(self._points, _hash(session))
        seen: set[str] = set()
        for step in range(len(ids)):
            id_ = ids[(at + step) % len(ids)]
            if id_ not in seen:
                yield id_
                seen.add(id_)
                if len(seen) == _MOST_OWNERS:
                    return


def _points_of(id_: str) -> tuple[int, ...]:
    digest = blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=8 * _POINTS).digest()
    return struct.unpack(f">{_POINTS}Q", digest)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _score(session: str, name: str, weight: int) -> float:
    if weight == 0:
        return -math.inf
    # In (0, 1): never a whole one, whose logarithm is no divisor.
    chance = (_hash(f"{session}\0{name}") >> 12) / 2**52 + 2**-53
    return -weight / math.log(chance)
