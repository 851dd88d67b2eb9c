"""Public names: how what a client asks for leads to a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """A public name for a model. Weights, fallbacks and rollouts join it in later work."""

    name: str
    model: str
