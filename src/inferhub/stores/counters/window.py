"""How full one meter is, as arithmetic: minutes that slide, days and months of the calendar, holds.

Used by `book`; the Lua scripts beside it say the same to Redis. Never waits, stores or asks for the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from inferhub.core.quota import MAX_LIMIT, Meter, Reading, Unit, Window
from inferhub.stores.counters.base import HOLD_RETRY_S, LEASE_S

_SPAN_S = 61
# A minute is counted in buckets of a second: the one that is running and the 60 before it. So what was
# used is forgotten 60 to 61 s later, never earlier, and a meter needs 61 numbers whatever its limit.

_DAY_MS = 86_400_000
_LONGEST_MS = {Window.DAY: _DAY_MS, Window.MONTH: 31 * _DAY_MS}
_BACKWARD_MS = 25 * 3_600_000
# A clock that was set back by up to so much goes on in the period it had reached.


class Instant(NamedTuple):
    """Now, twice: minutes and leases go by what nobody can set, the calendar by the wall."""

    steady_ms: int
    """Since the machine started; the same for all its processes."""
    wall_ms: int
    """Since 1970, UTC."""


Clock = Callable[[], Instant]


def system_clock() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)


class Gauge(msgspec.Struct, array_like=True):
    """What is used of one meter."""

    used: int = 0
    """In the last minute, or spent since the period began."""
    held: int = 0
    """By tickets that are neither settled nor lapsed."""
    ends_ms: int = 0
    """Wall time of the period's end; 0 before the first use, and for other windows."""
    seconds: dict[int, int] = {}
    """Steady second → amount, oldest first; for a minute only."""


def advance(gauge: Gauge, window: Window, now: Instant) -> bool:
    """Forget what is over; comes before every other question. True where this must be kept: the same
    again at a later time would come to something else.
    """
    if window is Window.MINUTE:
        return _slide(gauge, now.steady_ms // 1000)
    return window is not Window.NOW and _turn(gauge, window, now.wall_ms)


def _slide(gauge: Gauge, second: int) -> bool:
    seconds = gauge.seconds
    while seconds and (oldest := next(iter(seconds))) <= second - _SPAN_S:
        gauge.used -= seconds.pop(oldest)
    if not seconds or next(reversed(seconds)) <= second:
        return False
    # The machine has started anew since. Nobody knows how long ago it was: it counts as of now.
    later = [when for when in seconds if when > second]
    amount = sum(seconds.pop(when) for when in later)
    seconds[second] = seconds.get(second, 0) + amount
    return True


def _turn(gauge: Gauge, window: Window, wall_ms: int) -> bool:
    if wall_ms >= gauge.ends_ms:
        gauge.used = 0
        gauge.ends_ms = period_end_ms(window, wall_ms)
        return False
    if gauge.ends_ms - wall_ms <= _LONGEST_MS[window] + _BACKWARD_MS:
        return False
    # The clock had been far ahead. What was spent is kept, or setting it right would refill budgets.
    gauge.ends_ms = period_end_ms(window, wall_ms)
    return True


def period_end_ms(window: Window, wall_ms: int) -> int:
    """The end of the UTC day or month that holds this moment."""
    if window is Window.DAY:
        return (wall_ms // _DAY_MS + 1) * _DAY_MS
    day = datetime.fromtimestamp(wall_ms // 1000, UTC)
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000


def wait_ms(gauge: Gauge, meter: Meter, amount: int, now: Instant) -> int | None:
    """Until there is room for `amount` if nobody else asks: 0 for now, None for never."""
    if amount > meter.limit:
        return None
    excess = gauge.used + gauge.held + amount - meter.limit
    if excess <= 0:
        return 0
    if meter.window is Window.MINUTE:
        for second, counted in gauge.seconds.items():
            excess -= counted
            if excess <= 0:
                return (second + _SPAN_S) * 1000 - now.steady_ms
    if meter.window is Window.NOW or gauge.used + amount <= meter.limit:
        return int(HOLD_RETRY_S * 1000)
    return gauge.ends_ms - now.wall_ms


def add(gauge: Gauge, meter: Meter, amount: int, now: Instant) -> None:
    """Count `amount` as of now, whether or not there is room."""
    amount = min(amount, MAX_LIMIT - gauge.used)
    gauge.used += amount
    if meter.window is Window.MINUTE and amount:
        second = now.steady_ms // 1000
        gauge.seconds[second] = gauge.seconds.get(second, 0) + amount


def take_back(gauge: Gauge, meter: Meter, amount: int, at: Instant) -> None:
    """Uncount part of what was counted `at` a moment; nothing where that moment is over."""
    if meter.window is Window.MINUTE:
        second = at.steady_ms // 1000
        counted = gauge.seconds.get(second, 0)
        amount = min(amount, counted)
        if counted:
            gauge.seconds[second] = counted - amount
        gauge.used -= amount
    elif period_end_ms(meter.window, at.wall_ms) == gauge.ends_ms:
        gauge.used = max(0, gauge.used - amount)


def spend(gauge: Gauge, meter: Meter, amount: int, now: Instant) -> None:
    """What becomes of a hold when its call is over: money is spent, a slot is free."""
    if meter.unit is Unit.USD:
        add(gauge, meter, amount, now)


def reading(gauge: Gauge, meter: Meter, now: Instant) -> Reading:
    """What callers are told."""
    used = min(gauge.used + gauge.held, MAX_LIMIT)
    if not used:
        return Reading(meter, 0, 0.0)
    if meter.window is Window.NOW:
        return Reading(meter, used, LEASE_S)
    if meter.window is Window.MINUTE:
        left_ms = (next(reversed(gauge.seconds)) + _SPAN_S) * 1000 - now.steady_ms
    else:
        left_ms = gauge.ends_ms - now.wall_ms
    return Reading(meter, used, left_ms / 1000)


def is_idle(gauge: Gauge, now: Instant) -> bool:
    """Whether nothing is lost by forgetting it."""
    if gauge.held:
        return False
    if gauge.seconds:
        return next(reversed(gauge.seconds)) <= now.steady_ms // 1000 - _SPAN_S
    return not gauge.used or gauge.ends_ms <= now.wall_ms
