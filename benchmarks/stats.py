"""Medians, percentiles and ratios of interleaved rounds. Pure; called by the measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TypeVar

C = TypeVar("C")
T = TypeVar("T")


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks. Raises `ValueError` without values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interleave(contenders: Mapping[str, C], one_round: Callable[[C], T], rounds: int) -> dict[str, list[T]]:
    """A B C A B C …: what disturbs the machine for a while disturbs every contender alike."""
    results: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            results[name].append(one_round(contender))
    return results


def paired_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each round, which a slow round cannot move."""
    return median(value / other for value, other in zip(values, base, strict=True))


def lowest(medians: Mapping[str, float]) -> str:
    """The name of the smallest one."""
    return min(medians, key=lambda name: medians[name])


def spread(values: Sequence[float]) -> float:
    """Largest minus smallest as a share of the median: how noisy the rounds were."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
