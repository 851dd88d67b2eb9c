"""Counts calls that were computed in batches, by the size of theirs. Workers write it, `metrics` shows it.

Plain numbers, so that engine processes need no metrics library. Labels are the operator's own model names.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(slots=True)
class Sizes:
    """A histogram: how many calls were in batches of up to so many, and in larger ones."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: int = 0


class BatchTally:
    """Sizes by (modality, model)."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str], Sizes] = {}

    def add(self, modality: str, model: str, size: int) -> None:
        """A call that was answered."""
        sizes = self.sizes.setdefault((modality, model), Sizes())
        sizes.counts[bisect_left(BUCKETS, size)] += 1
        sizes.sum += size


BATCHES = BatchTally()
"""Of the process, like its memory and its open files: every registry shows the same."""
