"""Public names: how what a client asks for leads to a model, and what happens where that model fails.

Made from `hub.yaml`; read by routing, which chooses, and by the attempt ring, which tries.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Literal


class Cause(StrEnum):
    """Why an attempt failed, as far as it matters for where to go next."""

    RATE_LIMIT = "rate_limit"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    FAILURE = "failure"
    """Lost, broken, or not what was asked for."""
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"


TRANSIENT = frozenset({Cause.RATE_LIMIT, Cause.OVERLOAD, Cause.TIMEOUT, Cause.FAILURE})
"""What a fallback takes over where its entry names no cause: the request itself was fine."""


@dataclass(frozen=True, slots=True)
class Target:
    """One model that a route leads to."""

    model: str
    weight: int = 1
    """Share of the calls among the targets of its priority; 0 takes none until the others cannot."""
    priority: int = 0
    """Lower is asked first; a higher one only where every lower one cannot, or where calls spill over."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """A model for calls that the targets failed. Tried in the order of the list."""

    model: str
    on: frozenset[Cause] = TRANSIENT


@dataclass(frozen=True, slots=True)
class Spill:
    """Hybrid serving: leave the preferred priority when it is predicted to answer too late."""

    first_token_s: float
    """The objective: predicted time to the first token beyond which a call goes to the next priority."""
    max_usd_per_hour: Decimal | None = None
    """What the calls of one gateway process that spilled over may cost in any hour; None: no cap."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Limits in time of a route's calls; None leaves the setting of the same name."""

    first_token_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    request_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A public name, where it leads, and how."""

    name: str
    targets: tuple[Target, ...]
    fallbacks: tuple[Fallback, ...] = ()
    prefer: Literal["weight", "latency", "cost"] = "weight"
    """How one target of a priority is chosen: by share, by predicted time to the first token, or by price."""
    spill: Spill | None = None
    affinity: bool = False
    """Calls of one session stay with one target while it is well."""
    hedge_after_s: float | None = None
    """Ask a second endpoint where the first has said nothing for this long; the slower one is cancelled."""
    patience: Patience = Patience()
    resume: bool = False
    """Continue an answer that broke off on another endpoint that can start from given text."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may answer, the likeliest first, each once."""
        ordered = sorted(self.targets, key=lambda target: (target.priority, -target.weight))
        names = (*(target.model for target in ordered), *(fallback.model for fallback in self.fallbacks))
        return tuple(dict.fromkeys(names))


def alias(name: str, model: str) -> Route:
    """A further name of one model."""
    return Route(name, (Target(model),))
