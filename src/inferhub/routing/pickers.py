"""Chance in the choice of an endpoint: whom to compare among many, and whom to take among equals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def sample(circle: Sequence[T], size: int, random: Random) -> Sequence[T]:
    """Any `size` different ones of those who are twice in the `circle`: steps of any length from anywhere,
    never more than once around. Two numbers by chance instead of one for each; everybody is as likely."""
    count = len(circle) // 2
    chance = random.random
    first, step = int(chance() * count), 1 + int(chance() * (count // size))
    return circle[first : first + size * step : step]


def best(options: Sequence[T], scores: Sequence[float], random: Random) -> T:
    """Any of those with the highest score."""
    highest = max(scores)
    if scores.count(highest) == 1:
        return options[scores.index(highest)]
    equal = [option for option, score in zip(options, scores, strict=True) if score == highest]
    return equal[int(random.random() * len(equal))]
