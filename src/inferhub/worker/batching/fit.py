"""How long a batch takes, learnt while it runs: duration = a·cost + b, for each modality and length. Pure.

`batcher` tells it of every batch; `choose` asks. The slope is the median of those between any two of the last
batches (Theil and Sen), so that a few that were disturbed do not bend the line.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

_MEMORY = 64
_LEAST = 4
"""Batches before anything is said."""
_EVERY = 8
"""Once there are so many, a new line is drawn only after so many more: drawing compares all pairs."""


@dataclass(frozen=True, slots=True)
class Line:
    s_per_cost: float
    fixed_s: float


class Fit:
    """What is known of one model's batches. An answer to `choose.Prediction`."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, int], _Samples] = {}

    def learn(self, modality: str, length: float, cost: float, took_s: float) -> None:
        """`cost`: with padding."""
        self._samples.setdefault((modality, _bucket(length)), _Samples()).add(cost, took_s)

    def duration_s(self, modality: str, length: float, cost: float) -> float | None:
        line = self._line(modality, length)
        return None if line is None else line.s_per_cost * cost + line.fixed_s

    def overhead(self, modality: str, length: float) -> float:
        line = self._line(modality, length)
        return line.fixed_s / line.s_per_cost if line is not None and line.s_per_cost else 0.0

    def _line(self, modality: str, length: float) -> Line | None:
        samples = self._samples.get((modality, _bucket(length)))
        return samples.line if samples else None


class _Samples:
    """The last batches of one kind, and the line through them."""

    def __init__(self) -> None:
        self.line: Line | None = None
        self._last: deque[tuple[float, float]] = deque(maxlen=_MEMORY)
        self._new = 0

    def add(self, cost: float, took_s: float) -> None:
        self._last.append((cost, took_s))
        self._new += 1
        if len(self._last) >= _LEAST and (self._new >= _EVERY or len(self._last) < _EVERY):
            self.line, self._new = line(list(self._last)), 0


def line(samples: list[tuple[float, float]]) -> Line:
    """Through (cost, seconds). Neither part is below 0; of batches of one size, all of it is by the cost."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for number, earlier in enumerate(samples)
        for later in samples[number + 1 :]
        if later[0] != earlier[0]
    ]
    slope = median(slopes) if slopes else math.inf
    fixed_s = median(took_s - slope * cost for cost, took_s in samples) if slopes else 0.0
    if not slopes or fixed_s < 0:
        return Line(median(took_s / cost for cost, took_s in samples), 0.0)
    if slope < 0:
        return Line(0.0, median(took_s for _, took_s in samples))
    return Line(slope, fixed_s)


def _bucket(length: float) -> int:
    """Lengths that are alike: up to twice as long."""
    return math.frexp(length)[1]
