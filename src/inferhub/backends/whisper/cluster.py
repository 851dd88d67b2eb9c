"""Vectors of voices put together by likeness: agglomerative clustering, average linkage. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_MOST = 800
"""Vectors that are compared with each other; of a longer recording, so many spread over all of it."""
_LEAST = 3
"""Vectors, 0.4 s each, that make somebody a speaker of their own."""
_STAY = 0.15
"""How much liker another voice must be to take over: mostly, whoever just spoke goes on."""

Vectors = NDArray[np.float32]


def cluster(vectors: Vectors, threshold: float, speakers: int | None = None) -> Vectors:
    """The centres, of length 1. As many as `speakers`, or as there are that are less alike than `threshold`.

    Fewer than `speakers` where the vectors are too few for so many.
    """
    taken = vectors
    if len(vectors) > _MOST:
        taken = vectors[np.linspace(0, len(vectors) - 1, _MOST).astype(int)]
    groups = _merge(taken, threshold, speakers)
    large = [group for group in groups if len(group) >= _LEAST]
    if not large:
        large = sorted(groups, key=len, reverse=True)[: speakers or 1]
    sums = np.stack([taken[group].sum(axis=0) for group in large])
    return np.asarray(sums / (np.linalg.norm(sums, axis=1, keepdims=True) + 1e-9), np.float32)


def assign(vectors: Vectors, centres: Vectors) -> NDArray[np.float32]:
    """How alike each vector is to each centre."""
    return np.asarray(vectors @ centres.T, np.float32)


def smooth(likeness: NDArray[np.float32]) -> list[int]:
    """The best sequence of centres for consecutive vectors, where a change has its price (Viterbi)."""
    best = likeness[0].astype(np.float64)
    came_from: list[NDArray[np.intp]] = []
    for row in likeness[1:]:
        leader = int(best.argmax())
        changes = best < best[leader] - _STAY
        came_from.append(np.where(changes, leader, np.arange(len(best))))
        best = np.where(changes, best[leader] - _STAY, best) + row
    path = [int(best.argmax())]
    for sources in reversed(came_from):
        path.append(int(sources[path[-1]]))
    return path[::-1]


def _merge(vectors: Vectors, threshold: float, speakers: int | None) -> list[list[int]]:
    """Groups of indices, the two most alike merged again and again."""
    alike = (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(alike, -np.inf)
    groups: dict[int, list[int]] = {index: [index] for index in range(len(vectors))}
    best = list(groups.values())
    while len(groups) > 1:
        one, other = divmod(int(alike.argmax()), len(vectors))
        if speakers is None and alike[one, other] < threshold:
            break
        _join(alike, len(groups[one]), len(groups[other]), one, other)
        groups[one] = groups[one] + groups.pop(other)
        # With a known number, the last state that has so many of some size: what remains small is noise.
        if speakers is None or _count(groups.values()) >= speakers or _count(best) < speakers:
            best = list(groups.values())
        if speakers is not None and len(groups) <= speakers and _count(groups.values()) >= len(groups):
            break
    return list(groups.values()) if speakers is None else _largest(best, speakers)


def _join(alike: NDArray[np.float64], ours: int, theirs: int, one: int, other: int) -> None:
    """Rows of two groups become the row of their union, weighted by size."""
    row = (alike[one] * ours + alike[other] * theirs) / (ours + theirs)
    alike[one] = alike[:, one] = row
    alike[one, one] = -np.inf
    alike[other] = alike[:, other] = -np.inf


def _count(groups: Iterable[list[int]]) -> int:
    return sum(len(group) >= _LEAST for group in groups)


def _largest(groups: list[list[int]], speakers: int) -> list[list[int]]:
    return sorted(groups, key=len, reverse=True)[:speakers]
