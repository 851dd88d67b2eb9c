"""Who of this process's calls is at one endpoint now, and whether there is room for one more.

Kept by `condition`, told by `trial`. The rules of the limit are in `concurrency`; here is only what changes.
"""

from __future__ import annotations

import math
from collections import Counter

from inferhub.core.call import Criticality
from inferhub.routing import concurrency
from inferhub.routing.concurrency import Bounds, Caller, Limit, Sample


class Place:
    """One call's stay, from `Room.enter` to `Room.leave`."""

    __slots__ = ("ahead", "began_s", "caller", "load", "total")

    def __init__(self, caller: Caller, began_s: float, *, ahead: int, total: int, load: int) -> None:
        self.caller = caller
        self.began_s = began_s
        self.ahead = ahead
        """Calls that were there and are at least as critical."""
        self.total = total
        """All that were there."""
        self.load = load
        """With those of other processes."""


class Room:
    __slots__ = ("_by_class", "_by_tenant", "_free_since_s", "_limit", "sure")

    def __init__(self) -> None:
        self._limit = concurrency.fresh(concurrency.bounds_of(0, 0))
        self.sure = self._limit.bounds.sure
        """While fewer calls are there, there is room for one more; the scheduler asks for this often."""
        self._by_class = [0] * len(Criticality)
        self._by_tenant: Counter[str] = Counter()
        self._free_since_s = -math.inf
        """Since when a slot has been free, while one is."""

    @property
    def limit(self) -> Limit:
        return self._limit

    @property
    def total(self) -> int:
        return sum(self._by_class)

    def limit_at(self, now_s: float) -> Limit:
        free_s = now_s - self._free_since_s if self.total < self.sure else 0.0
        return concurrency.cooled(self._limit, now_s, free_s)

    def size(self, bounds: Bounds) -> None:
        self._limit = concurrency.resized(self._limit, bounds)
        self.sure = bounds.sure

    def has_place(self, caller: Caller, now_s: float) -> bool:
        """Whether one more call may go there.

        Only calls that are at least as critical count, because no other is served before it. Where those
        fill the limit, a tenant with less than an even share of it is let in all the same: somebody with
        many calls must not be all that the endpoint hears of.
        """
        limit = self._limit = self.limit_at(now_s)
        if self.total < limit.bounds.ceiling:
            if self._ahead(caller.criticality) < limit.allowed(caller.criticality):
                return True
            if self._is_owed(caller):
                return True
        self._limit = concurrency.filled(limit, now_s)
        return False

    def enter(self, caller: Caller, now_s: float, foreign: int = 0) -> Place:
        """Whoever has been asked is there, with a place or without: some are asked all the same.

        `foreign` calls are there that other processes have sent.
        """
        limit = self._limit = self.limit_at(now_s)
        ahead, total = self._ahead(caller.criticality), self.total
        self._by_class[caller.criticality] += 1
        self._by_tenant[caller.tenant] += 1
        if ahead + 1 >= limit.allowed(caller.criticality) or total + 1 >= limit.bounds.ceiling:
            self._limit = concurrency.filled(limit, now_s)
        return Place(caller, now_s, ahead=ahead, total=total, load=total + foreign)

    def leave(self, place: Place, now_s: float) -> None:
        if self.total == self.sure:
            self._free_since_s = now_s
        tenant = place.caller.tenant
        self._by_class[place.caller.criticality] -= 1
        self._by_tenant[tenant] -= 1
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]

    def answered(self, place: Place, now_s: float, units: float, *, is_whole: bool) -> None:
        """Its first piece came, or all of its answer."""
        sample = Sample(place.began_s, place.ahead, place.load, now_s - place.began_s, units, is_whole)
        self._limit = concurrency.sampled(self._limit, sample, now_s)

    def refused(self, place: Place, now_s: float) -> None:
        """The endpoint had no room for it."""
        self._limit = concurrency.refused(self._limit, place.began_s, place.total, now_s)

    def stalled(self, place: Place, now_s: float) -> None:
        """The endpoint was silent for too long."""
        self._limit = concurrency.stalled(self._limit, place.began_s, place.total, now_s)

    def retry_after_s(self, criticality: Criticality) -> float:
        return concurrency.retry_after_s(self._limit, criticality)

    def _is_owed(self, caller: Caller) -> bool:
        """Whether its tenant has less than an even share of the limit."""
        limit, tenants = self._limit, self._by_tenant
        mine = tenants[caller.tenant]
        others = len(tenants) - (mine > 0)
        share = max(1, limit.allowed(caller.criticality) // (others + 1))
        return (
            others > 0 and mine < share and self._ahead(caller.criticality) < limit.most(caller.criticality)
        )

    def _ahead(self, criticality: Criticality) -> int:
        return sum(self._by_class[: criticality + 1])
