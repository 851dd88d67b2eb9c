"""A fleet that one orchestrator remembers: plain dictionaries, between two awaits.

The executable specification. Opened by `stores.open_fleet`. Gone with its process; workers and gateways
tell the next one everything again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.fleet.base import Sighting, Wanted, rank


async def open_fleet(url: str) -> MemoryFleet:
    """Open `memory://`. Raises `SetupError` where more follows."""
    if url != "memory://":
        raise SetupError("fleet_url memory:// takes nothing behind it.", param="fleet_url")
    return MemoryFleet()


@dataclass(frozen=True, slots=True)
class _Seen:
    sighting: Sighting
    heard_at_s: float
    due_s: float


class MemoryFleet:
    """Answers `FleetStore`. Bounded by what lives: whatever has ended is dropped at the next question."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._wants: dict[str, tuple[Wanted, float]] = {}
        self._leader: tuple[str, float] | None = None
        self._is_closed = False

    async def saw(self, sightings: Sequence[Sighting], ttl_s: float) -> None:
        now_s = self._now()
        for sighting in sightings:
            known = self._seen.get(sighting.id)
            if known is not None and rank(sighting) <= rank(known.sighting):
                continue
            heard_at_s = now_s - max(0.0, sighting.age_s)
            self._seen[sighting.id] = _Seen(sighting, heard_at_s, heard_at_s + ttl_s)

    async def sightings(self) -> Sequence[Sighting]:
        now_s = self._now()
        return [replace(seen.sighting, age_s=now_s - seen.heard_at_s) for seen in self._seen.values()]

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        self._now()
        known = self._seen.get(id)
        if known is not None and known.sighting.incarnation <= incarnation:
            del self._seen[id]

    async def want(self, wanted: Wanted, ttl_s: float) -> None:
        self._wants[wanted.holder] = (wanted, self._now() + ttl_s)

    async def wants(self) -> Sequence[Wanted]:
        self._now()
        return [wanted for wanted, _ in self._wants.values()]

    async def lead(self, holder: str, ttl_s: float) -> bool:
        now_s = self._now()
        if self._leader is not None and self._leader[0] != holder:
            return False
        self._leader = (holder, now_s + ttl_s)
        return True

    async def resign(self, holder: str) -> None:
        self._now()
        if self._leader is not None and self._leader[0] == holder:
            self._leader = None

    async def close(self) -> None:
        self._is_closed = True

    def _now(self) -> float:
        """The time, after everything that has ended by then was dropped."""
        if self._is_closed:
            raise StoreFailed("The fleet's store is closed.")
        now_s = self._clock()
        self._seen = {id_: seen for id_, seen in self._seen.items() if seen.due_s > now_s}
        self._wants = {holder: want for holder, want in self._wants.items() if want[1] > now_s}
        if self._leader is not None and self._leader[1] <= now_s:
            self._leader = None
        return now_s
