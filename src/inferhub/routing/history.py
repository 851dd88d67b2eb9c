"""What one endpoint did lately: how soon it began to answer at which load, and how often it failed.

Bounded in number and age. Written by `condition`; everybody else reads snapshots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import NamedTuple

MAX_SAMPLES = 64
MAX_AGE_S = 180.0
"""Older samples are forgotten, so that an endpoint which was slow once is asked again."""
LEAST_SAMPLES = 3
WINDOW_S = 30
_GROUPS = 8
_REFIT_AFTER = 4
_REFIT_S = 0.25


class Sample(NamedTuple):
    at_s: float
    load: int
    """Calls that the endpoint had when this one began."""
    first_token_s: float


class Line(NamedTuple):
    """first token ≈ `base_s` + `per_call_s` · load"""

    base_s: float
    per_call_s: float


@dataclass(frozen=True, slots=True)
class Tally:
    """Of the last `WINDOW_S` seconds, but for the row, which has no window."""

    successes: int = 0
    failures: int = 0
    failures_in_row: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    line: Line | None = None
    tally: Tally = Tally()


def predict_first_token_s(snapshot: Snapshot, load: int) -> float | None:
    """For a call that begins now beside `load` others; None without enough history."""
    line = snapshot.line
    return None if line is None else line.base_s + line.per_call_s * load


def fit(samples: Sequence[Sample]) -> Line | None:
    """A line that a third of wild samples does not move: medians of groups by load, median of their slopes.

    The method is Theil and Sen's, on at most eight group medians instead of all pairs, which keeps a fit
    below 0.1 ms. A falling line is noise (nobody answers sooner for having more to do), so it is made flat;
    so is one through a single load. A queue behind a fixed number of slots is a bent line; the straight one
    is then too high in its middle, and right about which endpoint is the slower.
    """
    if len(samples) < LEAST_SAMPLES:
        return None
    ordered = sorted(samples, key=lambda sample: sample.load)
    groups = min(_GROUPS, len(ordered) // LEAST_SAMPLES)
    edges = [len(ordered) * i // groups for i in range(groups + 1)]
    points = []
    for start, end in pairwise(edges):
        group = ordered[start:end]
        points.append((median(s.load for s in group), median(s.first_token_s for s in group)))
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for i, earlier in enumerate(points)
        for later in points[i + 1 :]
        if later[0] > earlier[0]
    ]
    per_call_s = max(0.0, median(slopes)) if slopes else 0.0
    base_s = max(0.0, median(s.first_token_s - per_call_s * s.load for s in ordered))
    return Line(base_s, per_call_s)


class History:
    """Mutable, of one endpoint. Times are on the monotonic clock."""

    __slots__ = (
        "_buckets",
        "_failures",
        "_fitted_s",
        "_in_row",
        "_line",
        "_samples",
        "_since_fit",
        "_successes",
    )

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._line: Line | None = None
        self._fitted_s = 0.0
        self._since_fit = 0
        self._buckets: deque[list[int]] = deque()
        """[second, successes, failures], oldest first."""
        self._successes = 0
        self._failures = 0
        self._in_row = 0

    def began(self, now_s: float, load: int, first_token_s: float) -> None:
        self._samples.append(Sample(now_s, load, first_token_s))
        self._since_fit += 1

    def succeeded(self, now_s: float) -> None:
        self._in_row = 0
        self._successes += 1
        self._bucket(now_s)[1] += 1

    def failed(self, now_s: float) -> None:
        self._in_row += 1
        self._failures += 1
        self._bucket(now_s)[2] += 1

    def forgive(self) -> None:
        """The failures that opened a breaker shall not open it again when it has closed."""
        self._buckets.clear()
        self._successes = self._failures = self._in_row = 0

    def tally(self, now_s: float) -> Tally:
        self._expire(now_s)
        return Tally(self._successes, self._failures, self._in_row)

    def line(self, now_s: float) -> Line | None:
        """Fitted anew after a few samples or a moment, not for every call."""
        samples = self._samples
        while samples and samples[0].at_s < now_s - MAX_AGE_S:
            samples.popleft()
            self._since_fit += 1
        is_stale = self._since_fit and now_s - self._fitted_s >= _REFIT_S
        if is_stale or self._since_fit >= _REFIT_AFTER or len(samples) <= LEAST_SAMPLES:
            self._line, self._fitted_s, self._since_fit = fit(samples), now_s, 0
        return self._line

    def snapshot(self, now_s: float) -> Snapshot:
        return Snapshot(self.line(now_s), self.tally(now_s))

    def _bucket(self, now_s: float) -> list[int]:
        self._expire(now_s)
        second = int(now_s)
        if not self._buckets or self._buckets[-1][0] != second:
            self._buckets.append([second, 0, 0])
        return self._buckets[-1]

    def _expire(self, now_s: float) -> None:
        oldest = int(now_s) - WINDOW_S
        while self._buckets and self._buckets[0][0] <= oldest:
            _, successes, failures = self._buckets.popleft()
            self._successes -= successes
            self._failures -= failures
