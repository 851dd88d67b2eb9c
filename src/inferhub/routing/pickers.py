"""Chance in the choice of an endpoint: whom to compare among many, and whom to take among equals. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def sample(count: int, size: int, known: Iterable[int], random: Random) -> Iterable[int]:
    """Places to look at: all of few; of many the `known` ones and `size` others at random."""
    places = set(known)
    wanted = size + len(places)
    if count <= wanted:
        return range(count)
    chance = random.random
    while len(places) < wanted:
        places.add(int(chance() * count))
    return places


def best(options: Sequence[T], scores: Sequence[float], random: Random) -> T:
    """Any of those with the highest score."""
    highest = max(scores)
    if scores.count(highest) == 1:
        return options[scores.index(highest)]
    equal = [option for option, score in zip(options, scores, strict=True) if score == highest]
    return equal[int(random.random() * len(equal))]
