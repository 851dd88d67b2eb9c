"""What orchestrators share: who was heard from, what gateways want, and which orchestrator acts.

Asked by `orchestrator` alone, now and then and never for a request. Everything in it ends by itself: what
nobody renews is gone after its time, by the store's own clock. Records are opaque here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sighting:
    """A worker, as the orchestrator that heard it wrote it down."""

    id: str
    incarnation: int
    seq: int
    record: bytes = field(repr=False)
    """The worker's whole status, encoded."""
    age_s: float = 0.0
    """Since it was heard, when it is written down and when it is read."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one gateway needs."""

    holder: str
    record: bytes = field(repr=False)
    """Its deployments, encoded. May hold an engine's options."""


def rank(sighting: Sighting) -> tuple[int, int]:
    """Which of two reports of one worker is the newer: both numbers may need 64 bits."""
    return sighting.incarnation, sighting.seq


class FleetStore(Protocol):
    """Every method raises `StoreFailed` and nothing foreign."""

    async def saw(self, sightings: Sequence[Sighting], ttl_s: float) -> None:
        """Write down, until `ttl_s` after each was heard; one that is not newer than what is known changes
        nothing, not even its time."""

    async def sightings(self) -> Sequence[Sighting]:
        """All that have not ended."""

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        """It left. A later life of the id stays."""

    async def want(self, wanted: Wanted, ttl_s: float) -> None:
        """Instead of what this holder wanted before; also renews the same."""

    async def wants(self) -> Sequence[Wanted]:
        """All that have not ended."""

    async def lead(self, holder: str, ttl_s: float) -> bool:
        """Whether this orchestrator acts for the next `ttl_s`: one at a time does, until its time is over or
        it resigns. Who leads already renews by asking, and counts its time from before it asked."""

    async def resign(self, holder: str) -> None:
        """Let another one lead now. Does nothing where another one does."""

    async def close(self) -> None: ...
