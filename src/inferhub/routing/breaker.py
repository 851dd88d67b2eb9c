"""The circuit breaker of one endpoint, as pure transitions. `condition` holds the state.

closed ──failures──► open ──time──► half-open ──2 good probes──► closed
                      ▲                 └─────── a bad one ──────► open, for twice as long
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from inferhub.routing.history import Tally


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    failures_in_row: int = 5
    """Opens after so many; 0 turns the breaker off."""
    failure_share: float = 0.5
    """Opens at this share of failures among the calls of `history.WINDOW_S`; 0 looks at rows only."""
    least_calls: int = 20
    """A share of fewer calls says nothing."""
    open_s: float = 5.0
    """The first time; every further time in a row is twice as long."""
    max_open_s: float = 60.0
    good_probes: int = 2
    """In a row, one at a time, until it closes."""


@dataclass(frozen=True, slots=True)
class Breaker:
    state: State = State.CLOSED
    until_s: float = 0.0
    """While open: when a probe may go."""
    openings: int = 0
    """In a row, without having closed between."""
    is_probing: bool = False
    good_probes: int = 0


CLOSED = Breaker()


def may_ask(breaker: Breaker, now_s: float) -> bool:
    """Whether a call may go; in half-open, as its probe."""
    if breaker.state is State.CLOSED:
        return True
    return now_s >= breaker.until_s and not breaker.is_probing


def asked(breaker: Breaker, now_s: float) -> Breaker:
    """A call goes. It is a probe if the result `is_probing` and the argument was not."""
    if breaker.state is State.CLOSED or not may_ask(breaker, now_s):
        return breaker
    return replace(breaker, state=State.HALF_OPEN, is_probing=True)


def probe_ended(breaker: Breaker) -> Breaker:
    """The probe said nothing about the endpoint, for example because its client left."""
    return replace(breaker, is_probing=False)


def probe_succeeded(breaker: Breaker, limits: BreakerLimits) -> Breaker:
    good = breaker.good_probes + 1
    if good >= limits.good_probes:
        return CLOSED
    return replace(breaker, is_probing=False, good_probes=good)


def probe_failed(breaker: Breaker, limits: BreakerLimits, now_s: float, chance: float) -> Breaker:
    """`chance` from 0 to 1 spreads the probes of many gateways."""
    return _open(breaker.openings + 1, limits, now_s, chance)


def failed(breaker: Breaker, tally: Tally, limits: BreakerLimits, now_s: float, chance: float) -> Breaker:
    """A failure of an ordinary call; `tally` counts it already. Only a closed breaker listens to those."""
    if breaker.state is not State.CLOSED or not trips(tally, limits):
        return breaker
    return _open(1, limits, now_s, chance)


def trips(tally: Tally, limits: BreakerLimits) -> bool:
    if limits.failures_in_row == 0:
        return False
    if tally.failures_in_row >= limits.failures_in_row:
        return True
    calls = tally.successes + tally.failures
    return calls >= limits.least_calls and 0 < limits.failure_share <= tally.failures / calls


def _open(openings: int, limits: BreakerLimits, now_s: float, chance: float) -> Breaker:
    # Capped before it is raised: 2.0 ** openings would overflow for an endpoint that is dead for weeks.
    longest = min(limits.open_s * 2 ** min(openings - 1, 16), limits.max_open_s)
    return Breaker(State.OPEN, now_s + longest * (1 - 0.2 * chance), openings)


def let_through(until_s: Sequence[float], of: int, max_ejected_share: float) -> frozenset[int]:
    """Indexes of open endpoints that are asked all the same, given each one's end and how many there are.

    At most a share of a route's endpoints is ejected, and never the last one of several: were the breakers
    wrong, or the failure everywhere, a route would otherwise refuse calls that somebody could have answered.
    The least bad, those with the nearest end, are let through. The only endpoint of a route has nobody to be
    worse than: it stays ejected.
    """
    if of <= 1:
        return frozenset()
    most_ejected = min(max(1, int(of * max_ejected_share)), of - 1)
    surplus = len(until_s) - most_ejected
    if surplus <= 0:
        return frozenset()
    return frozenset(sorted(range(len(until_s)), key=until_s.__getitem__)[:surplus])
