"""The nouns of the suite: a `Measure` runs and returns an `Outcome` of `Figure`s, each with its verdict.

Pure: judges numbers, starts nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    MET = "met"
    MISSED = "MISSED"
    NOT_MEASURED = "not measured"
    NO_TARGET = "no target"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that belongs to the figure's unit."""

    bound: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


def at_most(bound: float) -> Target:
    return Target(bound)


def at_least(bound: float) -> Target:
    return Target(bound, at_least=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a run."""

    name: str
    value: float | None
    """None when it could not be measured; `note` then says why and what to do."""
    unit: str
    target: Target | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        # NaN compares false with everything and would read as missed: it is no measurement.
        if self.value is None or self.value != self.value:
            return Verdict.NOT_MEASURED
        if self.target is None:
            return Verdict.NO_TARGET
        return Verdict.MET if self.target.is_met(self.value) else Verdict.MISSED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one measure found."""

    figures: tuple[Figure, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Everything the figures were made of: medians of each contender, rounds, settings."""
    table: tuple[tuple[str, ...], ...] = ()
    """Printed below the figures, the first row as its head; what it shows is in `details` too."""


class CannotMeasureError(Exception):
    """Something the measure needs is missing or broken. The message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough this run is."""

    quick: bool = False

    def rounds(self, usual: int) -> int:
        """Fewer rounds when quick, but enough for a median."""
        return 3 if self.quick else usual

    def scaled(self, usual: float) -> float:
        """A duration or a count, cut when quick."""
        return usual * 0.4 if self.quick else usual


@dataclass(frozen=True, slots=True)
class Measure:
    """One question about speed or memory."""

    name: str
    title: str
    run: Callable[[Options], Outcome]
    order: int
    limit_s: float = 90.0
    """The measure is broken off after this time and reported as not measured."""
