"""Whose turn it is: three priority bands, tenants in fair turns within one, deadlines within a tenant.

`lane` asks it. Who waits for long rises a band, so that nobody starves. Pure: the time is given to it.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from inferhub.core.call import Criticality
from inferhub.worker.queue.fair import Band, Entry, Ticket

AGE_S = 2.0
"""A call that has waited so long in one band rises to the next."""
_SPARE = 8


class Order:
    """What waits. Every operation takes O(log n)."""

    def __init__(self) -> None:
        self._bands = tuple(Band() for _ in Criticality)
        self._kinds: tuple[dict[int, Entry], ...] = tuple({} for _ in Criticality)
        """By what the calls are, not by how far they have risen; the newest is last."""
        self._ages: list[tuple[float, int, Entry]] = []
        self._numbers = count()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def cost(self) -> float:
        return sum(band.cost for band in self._bands)

    def add(self, ticket: Ticket, value: Any, now_s: float) -> Entry:
        entry = Entry(ticket, value, next(self._numbers))
        self._bands[ticket.criticality].add(entry)
        self._kinds[ticket.criticality][entry.number] = entry
        self._waiting += 1
        if ticket.criticality:
            heappush(self._ages, (now_s + AGE_S, entry.number, entry))
        return entry

    def remove(self, entry: Entry) -> None:
        """Also one that has left already."""
        if entry.band is not None:
            entry.band.remove(entry)
            self._left(entry)

    def pop(self, now_s: float) -> Entry | None:
        """Take out the next one."""
        self._rise(now_s)
        for band in self._bands:
            entry = band.pop()
            if entry is not None:
                self._left(entry)
                return entry
        return None

    def newest_below(self, criticality: Criticality) -> Entry | None:
        """Who would have to make room for a call of this kind: the newest of the least critical."""
        for kind in reversed(self._kinds[criticality + 1 :]):
            if kind:
                return next(reversed(kind.values()))
        return None

    def ahead_of(self, ticket: Ticket) -> float:
        """Cost of what is answered before a call that comes now."""
        above = sum(band.cost for band in self._bands[: ticket.criticality])
        return above + self._bands[ticket.criticality].ahead_of(ticket)

    def _left(self, entry: Entry) -> None:
        del self._kinds[entry.ticket.criticality][entry.number]
        self._waiting -= 1
        if len(self._ages) > 2 * self._waiting + _SPARE:
            self._ages = [age for age in self._ages if age[2].band is not None]
            heapify(self._ages)

    def _rise(self, now_s: float) -> None:
        while self._ages and self._ages[0][0] <= now_s:
            due_s, number, entry = heappop(self._ages)
            if entry.band is None:
                continue
            level = self._bands.index(entry.band) - 1
            entry.band.remove(entry)
            self._bands[level].add(entry)
            if level:
                heappush(self._ages, (due_s + AGE_S, number, entry))
