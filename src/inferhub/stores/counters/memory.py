"""Counters of one process: plain arithmetic between two awaits, so that nothing comes in between.

For one gateway without limits to remember over a restart, and what others fall back to. Opened by
`stores.open_counters`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from inferhub.core.errors import SetupError
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation
from inferhub.stores.counters.base import LEASE_S, Counters
from inferhub.stores.counters.book import Book, Ticket
from inferhub.stores.counters.window import Clock, Gauge, Instant, is_idle, system_clock

REMEMBER_S = 2 * LEASE_S
"""Shorter than in stores that outlive the process: no answer gets lost here."""
MAX_REMEMBERED = 100_000
"""Tickets without holds; beyond it the oldest is forgotten earlier."""
_CHECKED_EACH = 2
"""How many gauges or marks each call looks at, whether they may be forgotten."""


async def open_counters(url: str) -> Counters:
    """Open `memory://`. Raises `SetupError` where more follows."""
    if url != "memory://":
        raise SetupError("counters_url memory:// takes nothing behind it.", param="counters_url")
    return MemoryCounters()


class MemoryCounters:
    """Answers `Counters` from dictionaries. Gone with the process; bounded by what is in use."""

    def __init__(self, clock: Clock = system_clock) -> None:
        self._clock = clock
        self._rows = MemoryRows()
        self._book = Book(self._rows, REMEMBER_S)
        self._marks: dict[str, int] = {}

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        return self._book.reserve(ticket, claims, self._clock())

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        return self._book.settle(reservation, used, self._clock())

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        self._book.renew(reservations, self._clock())

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        self._book.charge(ticket, used, self._clock())

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        return self._book.read(meters, self._clock())

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        now_ms = self._clock().wall_ms
        for _ in range(min(_CHECKED_EACH, len(self._marks))):
            oldest = next(iter(self._marks))
            until_ms = self._marks.pop(oldest)
            if until_ms > now_ms:
                self._marks[oldest] = until_ms
        if self._marks.get(mark, 0) > now_ms:
            return False
        self._marks[mark] = now_ms + int(ttl_s * 1000)
        return True

    async def ping(self) -> None:
        """It is there as long as we are."""

    async def close(self) -> None:
        """Nothing to give back."""


class MemoryRows:
    """Gauges and tickets in dictionaries. Each call forgets a little, so that none takes long."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._round: deque[str] = deque()  # every gauge's key, in the order of looking at them
        self._tickets: dict[str, Ticket] = {}
        # By due time, for it is always the same time away from now. One that was saved again since is
        # in the queue again, and its old place says nothing.
        self._leases: deque[tuple[int, str]] = deque()
        self._others: deque[tuple[int, str]] = deque()

    def gauge(self, key: str) -> Gauge:
        return self._gauges.get(key) or Gauge()

    def save_gauge(self, key: str, gauge: Gauge) -> None:
        if key not in self._gauges:
            self._round.append(key)
        self._gauges[key] = gauge

    def ticket(self, ticket: str) -> Ticket | None:
        return self._tickets.get(ticket)

    def save_ticket(self, ticket: str, state: Ticket) -> None:
        self._tickets[ticket] = state
        (self._leases if state.holds else self._others).append((state.due_ms, ticket))

    def lapsed(self, now: Instant) -> Iterator[tuple[str, Ticket]]:
        self._forget_gauges(now)
        self._forget_tickets(now)
        while self._leases and self._leases[0][0] <= now.steady_ms:
            due_ms, ticket = self._leases.popleft()
            state = self._tickets.get(ticket)
            if state is not None and state.holds and state.due_ms == due_ms:
                yield ticket, state

    def _forget_tickets(self, now: Instant) -> None:
        others = self._others
        while others and (others[0][0] <= now.steady_ms or len(others) > MAX_REMEMBERED):
            due_ms, ticket = others.popleft()
            state = self._tickets.get(ticket)
            if state is not None and not state.holds and state.due_ms == due_ms:
                del self._tickets[ticket]

    def _forget_gauges(self, now: Instant) -> None:
        for _ in range(min(_CHECKED_EACH, len(self._round))):
            key = self._round.popleft()
            if is_idle(self._gauges[key], now):
                del self._gauges[key]
            else:
                self._round.append(key)
