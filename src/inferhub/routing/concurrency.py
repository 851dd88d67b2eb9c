"""How many calls of this process an endpoint is given at once. Pure transitions; `room` holds the state.

While nobody has to be refused, the limit is what the worker announced, its slots and its queue. Once it is
reached somebody is refused anyway, and a long queue then only makes everybody else wait: the limit comes
down to where waiting takes as long as being served, and is forgotten when it has been enough for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from inferhub.core.call import Criticality
from inferhub.core.errors import Overloaded

SHARES: dict[Criticality, float] = {
    Criticality.REALTIME: 1.0,
    Criticality.INTERACTIVE: 0.9,
    Criticality.BATCH: 0.7,
}
"""Of the room beyond the slots: who may come later leaves some of it to who may not."""

TOLERANCE = 1.5
"""In an overload an answer may take so many times what it takes where no call waits."""
LEAST_MEMORY_S = 1.0
MAX_MEMORY_S = 30.0
_MEMORY_ROUNDS = 8
"""An overload is remembered for so many answers, within the bounds above."""
_FREE_S = (0.25, 5.0)
_FREE_ROUNDS = 4
"""It is over at once where a slot was free for so many answers: bursts with pauses between them are none,
however often the limit turns some of a burst away."""
_WEIGHT = 0.2
"""Of the newest sample, in everything that is smoothed here."""
_SLOWER_WEIGHT = 0.05
"""Of one that says that a free slot answers more slowly: it may have waited behind calls that nobody here
knows of yet."""
_LEAST_SAMPLES = 3
_REFUSED, _STALLED = 0.9, 0.8
"""What is left of the calls there were when the endpoint refused one, or was silent for too long."""

_UNKNOWN_SLOTS, _UNKNOWN_QUEUE = 8, 248
_MAX_REMOTE_SLOTS = 8
"""An upstream has no slots that anybody could count; so many calls it is given whatever happens."""


class Caller(NamedTuple):
    """What of a call decides whether an endpoint has room for it."""

    criticality: Criticality = Criticality.INTERACTIVE
    tenant: str = ""


class Bounds(NamedTuple):
    sure: int
    """A call that finds fewer is never refused."""
    slots: int
    """So many calls are served at once, as far as anybody announced it."""
    floor: int
    """So many keep the slots busy: one that ends is followed at once."""
    ceiling: int


class Pace(NamedTuple):
    """Of calls that found a slot free: what they took, and their cost units. Both are smoothed rather than
    their ratio, so that a small call, which is mostly overhead, has little to say."""

    took_s: float = 0.0
    units: float = 0.0

    def after(self, took_s: float, units: float) -> Pace:
        if not self.units:
            return Pace(took_s, units)
        is_slower = took_s * self.units > self.took_s * units
        weight = _SLOWER_WEIGHT if is_slower else _WEIGHT
        return Pace(self.took_s + weight * (took_s - self.took_s), self.units + weight * (units - self.units))

    def expected_s(self, units: float) -> float:
        return self.took_s * units / self.units if self.units else 0.0


class Crowd(NamedTuple):
    """Of calls that found no slot free: what they took, what they would have taken, beside how many."""

    took_s: float = 0.0
    expected_s: float = 0.0
    calls: float = 0.0
    samples: int = 0

    def after(self, took_s: float, expected_s: float, calls: int) -> Crowd:
        weight = max(_WEIGHT, 1 / (self.samples + 1))
        return Crowd(
            self.took_s + weight * (took_s - self.took_s),
            self.expected_s + weight * (expected_s - self.expected_s),
            self.calls + weight * (calls - self.calls),
            self.samples + 1,
        )

    @property
    def stretch(self) -> float:
        """How many times longer than without waiting; 0 where too little is known."""
        return self.took_s / self.expected_s if self.samples >= _LEAST_SAMPLES else 0.0


class Sample(NamedTuple):
    """One call's first piece, or its whole answer."""

    began_s: float
    ahead: int
    """Calls there when it began that are at least as critical."""
    load: int
    """All of them, with those of other processes as far as the endpoint has told."""
    took_s: float
    units: float
    is_whole: bool
    """Whether `took_s` is the time of all of the answer."""


_NO_PACE = Pace()
_NOBODY = Crowd()


@dataclass(frozen=True, slots=True)
class Limit:
    bounds: Bounds
    calls: float
    hot_until_s: float = 0.0
    """Until when an overload is remembered; before the first one, never."""
    since_s: float = 0.0
    """Calls that began before say nothing of this limit, because they waited under another one."""
    first: Pace = _NO_PACE
    whole: Pace = _NO_PACE
    crowd: Crowd = _NOBODY

    def allowed(self, criticality: Criticality) -> int:
        """Calls at least so critical."""
        return _share(self.bounds, int(self.calls), criticality)

    def most(self, criticality: Criticality) -> int:
        """The same, of a limit that was never lowered."""
        return _share(self.bounds, self.bounds.ceiling, criticality)

    @property
    def round_s(self) -> float:
        """About what an answer takes while nobody waits."""
        return max(self.first.took_s, self.whole.took_s)


def bounds_of(slots: int, queue_limit: int, max_batch: int = 0, *, is_remote: bool = False) -> Bounds:
    """From what an endpoint announced, which may be nothing, or nonsense."""
    if slots < 1 or queue_limit < 0:
        slots, queue_limit = _UNKNOWN_SLOTS, _UNKNOWN_QUEUE
    slots = max(slots, max_batch)
    ceiling = slots + queue_limit
    sure = min(slots, _MAX_REMOTE_SLOTS) if is_remote else slots
    # The next batch fills up while one is computed.
    floor = max(sure + max(2, sure // 4), 2 * max_batch)
    return Bounds(sure, slots, min(floor, ceiling), ceiling)


def fresh(bounds: Bounds) -> Limit:
    return Limit(bounds, float(bounds.ceiling))


def resized(limit: Limit, bounds: Bounds) -> Limit:
    """After another announcement. What was learned of the pace still holds."""
    if bounds == limit.bounds:
        return limit
    return replace(fresh(bounds), first=limit.first, whole=limit.whole)


def cooled(limit: Limit, now_s: float, free_s: float = 0.0) -> Limit:
    """Without the overload that has been over for long enough. `free_s`: how long a slot has been free."""
    if limit.calls >= limit.bounds.ceiling:
        return limit
    least_s, most_s = _FREE_S
    is_free = free_s >= min(max(least_s, _FREE_ROUNDS * limit.round_s), most_s)
    if now_s < limit.hot_until_s and not is_free:
        return limit
    return replace(limit, calls=float(limit.bounds.ceiling), hot_until_s=0.0, crowd=_NOBODY)


def filled(limit: Limit, now_s: float) -> Limit:
    """The last place was taken, or none was left for a call: as long as that goes on, it is hot."""
    if limit.hot_until_s - now_s > _memory_s(limit) / 2 and limit.calls < limit.bounds.ceiling:
        return limit
    return _tightened(_heated(limit, now_s), now_s)


def sampled(limit: Limit, sample: Sample, now_s: float) -> Limit:
    if sample.load < limit.bounds.sure:
        if sample.is_whole:
            return replace(limit, whole=limit.whole.after(sample.took_s, sample.units))
        return replace(limit, first=limit.first.after(sample.took_s, sample.units))
    pace = limit.whole if sample.is_whole else limit.first
    expected_s = pace.expected_s(sample.units)
    if not expected_s or sample.began_s < limit.since_s:
        return limit
    limit = replace(limit, crowd=limit.crowd.after(sample.took_s, expected_s, sample.ahead + 1))
    if now_s >= limit.hot_until_s:
        return limit
    tightened = _tightened(limit, now_s)
    if tightened is not limit or limit.crowd.stretch > TOLERANCE:
        return tightened
    # One more for each round of calls that ended in time and came near the limit.
    is_used = sample.ahead + 1 >= SHARES[Criticality.BATCH] * limit.calls
    return _with(limit, limit.calls + 1 / limit.calls) if is_used else limit


def refused(limit: Limit, began_s: float, ahead: int, now_s: float) -> Limit:
    """The endpoint itself had no room, with `ahead` other calls of this process there."""
    return _lowered(_heated(limit, now_s), began_s, _REFUSED * ahead, now_s)


def stalled(limit: Limit, began_s: float, ahead: int, now_s: float) -> Limit:
    """The endpoint was silent for too long. One with a slot free has another trouble than too much work."""
    if ahead < limit.bounds.sure:
        return limit
    return _lowered(_heated(limit, now_s), began_s, _STALLED * ahead, now_s)


def retry_after_s(limit: Limit, criticality: Criticality) -> float:
    """When a refused call should come back: what may wait, later than what may not."""
    soon_s = min(max(LEAST_MEMORY_S, TOLERANCE * limit.round_s), MAX_MEMORY_S)
    return 2 * soon_s if criticality is Criticality.BATCH else soon_s


def shed(model: str, caller: Caller, wait_s: float) -> Overloaded:
    """What a call is told that no endpoint of its model has room for."""
    name = repr(model[:128])
    if caller.criticality is Criticality.BATCH:
        return Overloaded(
            f"{name} has no room for batch work now; more urgent calls come first.",
            retry_after_s=wait_s,
            reason="shed_batch",
        )
    return Overloaded(
        f"Every endpoint of {name} has as many calls as it can answer soon.",
        retry_after_s=wait_s,
        reason="concurrency_limit",
    )


def _share(bounds: Bounds, calls: int, criticality: Criticality) -> int:
    """Only places in the queue are kept free for others, never a slot."""
    served = bounds.slots if calls >= bounds.slots else bounds.sure
    return served + math.ceil(SHARES[criticality] * (calls - served))


def _heated(limit: Limit, now_s: float) -> Limit:
    return replace(limit, hot_until_s=now_s + _memory_s(limit))


def _memory_s(limit: Limit) -> float:
    return min(max(LEAST_MEMORY_S, _MEMORY_ROUNDS * limit.round_s), MAX_MEMORY_S)


def _tightened(limit: Limit, now_s: float) -> Limit:
    """Where answers take too long: as many calls as would have been served in time.

    By Little's law, the calls there divided by what they took is how fast they are served; times the time
    that is allowed, it is how many may be there.
    """
    stretch = limit.crowd.stretch
    if stretch <= TOLERANCE:
        return limit
    found = _with(limit, min(limit.calls, limit.crowd.calls * TOLERANCE / stretch))
    return found if found.calls == limit.calls else replace(found, since_s=now_s, crowd=_NOBODY)


def _lowered(limit: Limit, began_s: float, calls: float, now_s: float) -> Limit:
    if began_s < limit.since_s or calls >= limit.calls:
        return limit
    return replace(_with(limit, calls), since_s=now_s, crowd=_NOBODY)


def _with(limit: Limit, calls: float) -> Limit:
    return replace(limit, calls=min(max(calls, float(limit.bounds.floor)), float(limit.bounds.ceiling)))
