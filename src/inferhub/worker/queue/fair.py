"""One priority band: tenants take turns by the work they ask for, each with its most urgent call first.

`order` has three of them. This is deficit round robin whose rounds are counted instead of walked: every round
gives each tenant one cost unit of credit, and the tenant whose credit pays for its next call first is next.
That needs no quantum, which would have to fit tokens and seconds of sound alike, and is O(log n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from inferhub.core.call import Criticality

_SPARE = 8
"""Of what has left, so much more than what is there may lie in a heap before it is cleaned."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the queue has to know of a call."""

    criticality: Criticality = Criticality.INTERACTIVE
    tenant: str = ""
    cost: float = 1.0
    deadline_s: float = math.inf


@dataclass(slots=True, eq=False)
class Entry:
    """A ticket that waits, with whatever belongs to it."""

    ticket: Ticket
    value: Any
    number: int
    """In the order of arrival."""
    band: Band | None = None
    """None when it waits no more."""


@dataclass(slots=True, eq=False)
class _Tenant:
    name: str
    paid: float
    """The round in which its credit was last used up, or in which it came."""
    calls: list[tuple[float, int, Entry]] = field(default_factory=list)
    """A heap by deadline. May still hold some that have left."""
    waiting: int = 0
    cost: float = 0.0
    head: Entry | None = None
    turn: int = -1
    """Number of its valid place among the turns."""


class Band:
    """The calls of one priority."""

    def __init__(self) -> None:
        self.cost = 0.0
        self._round = 0.0
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, int, int, _Tenant]] = []
        """A heap by the round in which the tenant can pay; a tenant's older places are void."""
        self._numbers = count()

    def add(self, entry: Entry) -> None:
        ticket = entry.ticket
        tenant = self._tenants.get(ticket.tenant)
        if tenant is None:
            tenant = self._tenants[ticket.tenant] = _Tenant(ticket.tenant, self._round)
        entry.band = self
        heappush(tenant.calls, (ticket.deadline_s, entry.number, entry))
        tenant.waiting += 1
        tenant.cost += ticket.cost
        self.cost += ticket.cost
        self._line_up(tenant)

    def remove(self, entry: Entry) -> None:
        tenant = self._tenants[entry.ticket.tenant]
        entry.band = None
        tenant.waiting -= 1
        tenant.cost -= entry.ticket.cost
        self.cost -= entry.ticket.cost
        if not tenant.waiting:
            # What it has saved up is lost: credit is for those who wait.
            tenant.turn = -1
            del self._tenants[tenant.name]
            if not self._tenants:
                self._turns.clear()
                self.cost = self._round = 0.0
            return
        if len(tenant.calls) > 2 * tenant.waiting + _SPARE:
            tenant.calls = [place for place in tenant.calls if place[2].band is self]
            heapify(tenant.calls)
        self._line_up(tenant)

    def pop(self) -> Entry | None:
        while self._turns:
            due, _, turn, tenant = heappop(self._turns)
            if turn != tenant.turn or tenant.head is None:
                continue
            entry, tenant.head = tenant.head, None
            self._round = tenant.paid = due
            self.remove(entry)
            return entry
        return None

    def ahead_of(self, ticket: Ticket) -> float:
        """Cost of what is answered before a new call at most: no other tenant gets more than this one."""
        tenant = self._tenants.get(ticket.tenant)
        own = tenant.cost if tenant else 0.0
        others = len(self._tenants) - (tenant is not None)
        return own + min(self.cost - own, others * (own + ticket.cost))

    def _line_up(self, tenant: _Tenant) -> None:
        """Give the tenant its place, where another call than before is its next."""
        while tenant.calls[0][2].band is not self:
            heappop(tenant.calls)
        head = tenant.calls[0][2]
        if head is tenant.head:
            return
        tenant.head, tenant.turn = head, next(self._numbers)
        if len(self._turns) > 2 * len(self._tenants) + _SPARE:
            self._turns = [place for place in self._turns if place[2] == place[3].turn]
            heapify(self._turns)
        heappush(self._turns, (tenant.paid + head.ticket.cost, head.number, tenant.turn, tenant))
