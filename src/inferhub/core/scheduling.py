"""How the endpoints of one model are compared: the numbers of the scheduler, as an operator may set them.

Made from `hub.yaml`; read by routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RegionPolicy = Literal["any", "near", "own"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What each term counts; every term is between 0 and 1. The names are those of the scorers."""

    prefix: float = 3.0
    warm: float = 3.0
    pending: float = 2.0
    memory: float = 2.0
    region: float = 1.0
    gpu_fit: float = 1.0
    session: float = 0.5


@dataclass(frozen=True, slots=True)
class Scheduling:
    """Everything about the choice of an endpoint that is a matter of taste."""

    weights: Weights = Weights()
    gate_s: float = 2.0
    """So much more work than the least busy one may an endpoint have before nothing speaks for it."""
    gate_factor: float = 1.5
    """And it must be so many times as much."""
    sample: int = 8
    """Endpoints that are compared at random where there are more, beside those that are known to fit."""
    explore: float = 0.01
    """Share of the calls that go to any endpoint: what nobody tests stays unknown."""
    region_policy: RegionPolicy = "any"
    """Where calls may go at all, seen from the region of their gateway."""
    near_regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Region → the regions that are nearly as good for it."""
    gpus: tuple[str, ...] = ()
    """Kinds of GPU, as workers are labelled, the best first."""
