"""Counts what happens to the models of one worker: loads, unloads and why, and how long loading took.

The worker writes it; `metrics` shows it. Plain numbers, so that engine processes need no metrics library.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

LoadOutcome = Literal["ok", "error", "cancelled"]
UnloadReason = Literal["request", "room", "idle", "crash"]

BUCKETS_S = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


@dataclass(slots=True)
class Durations:
    """A histogram: how many took up to each bound, and longer than all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def add(self, took_s: float) -> None:
        self.counts[bisect_left(BUCKETS_S, took_s)] += 1
        self.sum_s += took_s


class ModelTally:
    """Labels are bounded: the operator's own model names, and the words above."""

    def __init__(self) -> None:
        self.loads: Counter[tuple[str, LoadOutcome]] = Counter()
        self.unloads: Counter[tuple[str, UnloadReason]] = Counter()
        self.cold_starts: dict[str, Durations] = {}

    def loaded(self, model: str, outcome: LoadOutcome, took_s: float) -> None:
        self.loads[model, outcome] += 1
        if outcome == "ok":
            self.cold_starts.setdefault(model, Durations()).add(took_s)

    def unloaded(self, model: str, reason: UnloadReason) -> None:
        self.unloads[model, reason] += 1
