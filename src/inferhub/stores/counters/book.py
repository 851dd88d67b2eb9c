"""The counters' rules over rows that are kept somewhere: reserve, settle, renew, charge, read.

Shared by `memory` and `sqlite`, which keep the rows and call one method at a time. Never waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation, Unit, Window
from inferhub.stores.counters import window
from inferhub.stores.counters.base import BLOCK, LEASE_S, countable, is_held
from inferhub.stores.counters.window import Gauge, Instant

_LEASE_MS = int(LEASE_S * 1000)


class Ticket(msgspec.Struct, array_like=True):
    """What is remembered of a reservation."""

    at: Instant
    due_ms: int
    """Steady time at which its lease runs out, or at which it is forgotten."""
    is_over: bool = False
    """Settled or charged."""
    holds: dict[str, int] = {}
    """Meter's key → amount; empty once it has lapsed or is over."""


class Rows(Protocol):
    """Where gauges and tickets are kept. What was changed is given to `save_…`."""

    def gauge(self, key: str) -> Gauge:
        """The gauge of a meter; a new one where there is none."""

    def save_gauge(self, key: str, gauge: Gauge) -> None: ...

    def ticket(self, ticket: str) -> Ticket | None: ...

    def save_ticket(self, ticket: str, state: Ticket) -> None: ...

    def lapsed(self, now: Instant) -> Iterable[tuple[str, Ticket]]:
        """Tickets with holds that are due. Forgets others that are due, and gauges that are idle."""


class Book:
    """One set of counters. Every method is one transaction of its caller."""

    def __init__(self, rows: Rows, remember_s: float) -> None:
        self._rows = rows
        self._remember_ms = int(remember_s * 1000)

    def reserve(self, ticket: str, claims: Sequence[Claim], now: Instant) -> Reservation | Refusal:
        self._give_back_lapsed(now)
        gauges = [self._gauge(claim.meter, now) for claim in claims]
        known = self._rows.ticket(ticket)
        if known is not None:
            return Reservation(ticket, tuple(claims), _readings(claims, gauges, now), known.at.wall_ms / 1000)
        refusal = _refusal(claims, gauges, now)
        if refusal is not None:
            return refusal
        holds: dict[str, int] = {}
        for claim, gauge in zip(claims, gauges, strict=True):
            amount = countable(claim.amount)
            if is_held(claim.meter):
                holds[claim.meter.key] = amount
                gauge.held += amount
            else:
                window.add(gauge, claim.meter, amount, now)
            self._rows.save_gauge(claim.meter.key, gauge)
        kept_ms = _LEASE_MS if holds else self._remember_ms
        self._rows.save_ticket(ticket, Ticket(now, now.steady_ms + kept_ms, holds=holds))
        return Reservation(ticket, tuple(claims), _readings(claims, gauges, now), now.wall_ms / 1000)

    def settle(self, reservation: Reservation, used: Mapping[str, int], now: Instant) -> tuple[Reading, ...]:
        self._give_back_lapsed(now)
        claims = reservation.claims
        gauges = [self._gauge(claim.meter, now) for claim in claims]
        # Forgotten is long ago: its minute is over, and the reservation itself knows its day.
        ticket = self._rows.ticket(reservation.id) or Ticket(
            Instant(-1, round(reservation.reserved_at_s * 1000)), due_ms=0
        )
        if not ticket.is_over:
            for claim, gauge in zip(claims, gauges, strict=True):
                meter = claim.meter
                real = countable(used.get(meter.key, claim.amount))
                if is_held(meter):
                    gauge.held -= ticket.holds.get(meter.key, 0)
                    window.spend(gauge, meter, real, now)
                elif real < (reserved := countable(claim.amount)):
                    window.take_back(gauge, meter, reserved - real, ticket.at)
                else:
                    window.add(gauge, meter, real - reserved, now)
                self._rows.save_gauge(meter.key, gauge)
            self._end(reservation.id, ticket, now)
        return _readings(claims, gauges, now)

    def renew(self, reservations: Sequence[Reservation], now: Instant) -> None:
        self._give_back_lapsed(now)
        for reservation in reservations:
            ticket = self._rows.ticket(reservation.id)
            if ticket is None:
                ticket = Ticket(Instant(-1, round(reservation.reserved_at_s * 1000)), due_ms=0)
            if ticket.is_over:
                continue
            if not ticket.holds:
                ticket.holds = self._hold_again(reservation)
            ticket.due_ms = now.steady_ms + (_LEASE_MS if ticket.holds else self._remember_ms)
            self._rows.save_ticket(reservation.id, ticket)

    def charge(self, ticket: str, used: Sequence[Claim], now: Instant) -> None:
        self._give_back_lapsed(now)
        state = self._rows.ticket(ticket) or Ticket(now, due_ms=0)
        if state.is_over:
            return
        self._release(state)
        for claim in used:
            gauge = self._gauge(claim.meter, now)
            if is_held(claim.meter):
                window.spend(gauge, claim.meter, countable(claim.amount), now)
            else:
                window.add(gauge, claim.meter, countable(claim.amount), now)
            self._rows.save_gauge(claim.meter.key, gauge)
        self._end(ticket, state, now)

    def read(self, meters: Sequence[Meter], now: Instant) -> tuple[Reading, ...]:
        self._give_back_lapsed(now)
        return tuple(window.reading(self._gauge(meter, now), meter, now) for meter in meters)

    def _gauge(self, meter: Meter, now: Instant) -> Gauge:
        gauge = self._rows.gauge(meter.key)
        if window.advance(gauge, meter.window, now):
            self._rows.save_gauge(meter.key, gauge)
        return gauge

    def _hold_again(self, reservation: Reservation) -> dict[str, int]:
        holds = {c.meter.key: countable(c.amount) for c in reservation.claims if is_held(c.meter)}
        for key, amount in holds.items():
            gauge = self._rows.gauge(key)
            gauge.held += amount
            self._rows.save_gauge(key, gauge)
        return holds

    def _give_back_lapsed(self, now: Instant) -> None:
        for ticket, state in self._rows.lapsed(now):
            if ticket.startswith(BLOCK):
                self._spend_lapsed(state, now)
            self._release(state)
            state.due_ms = now.steady_ms + self._remember_ms
            self._rows.save_ticket(ticket, state)

    def _spend_lapsed(self, block: Ticket, now: Instant) -> None:
        for key, amount in block.holds.items():
            unit, period = key.rsplit(":", 2)[1:]
            if unit == Unit.USD:
                meter = Meter(key, Unit.USD, Window(period), 0)
                gauge = self._gauge(meter, now)
                window.spend(gauge, meter, amount, now)
                self._rows.save_gauge(key, gauge)
                block.is_over = True

    def _release(self, ticket: Ticket) -> None:
        for key, amount in ticket.holds.items():
            gauge = self._rows.gauge(key)
            gauge.held -= amount
            self._rows.save_gauge(key, gauge)
        ticket.holds = {}

    def _end(self, ticket: str, state: Ticket, now: Instant) -> None:
        state.is_over = True
        state.holds = {}
        state.due_ms = now.steady_ms + self._remember_ms
        self._rows.save_ticket(ticket, state)


def _refusal(claims: Sequence[Claim], gauges: Sequence[Gauge], now: Instant) -> Refusal | None:
    refused: Claim | None = None
    longest_ms: int | None = 0
    for claim, gauge in zip(claims, gauges, strict=True):
        wait_ms = window.wait_ms(gauge, claim.meter, countable(claim.amount), now)
        if wait_ms is None or wait_ms > (longest_ms or 0):
            refused, longest_ms = claim, wait_ms
        if wait_ms is None:
            break
    if refused is None:
        return None
    retry_after_s = None if longest_ms is None else longest_ms / 1000
    return Refusal(refused, _readings(claims, gauges, now), retry_after_s)


def _readings(claims: Sequence[Claim], gauges: Sequence[Gauge], now: Instant) -> tuple[Reading, ...]:
    return tuple(window.reading(gauge, c.meter, now) for c, gauge in zip(claims, gauges, strict=True))
