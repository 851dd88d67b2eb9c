"""How a gateway chooses: the port `Policy`, and what others do. InferHub's own is in `production`.

All see the same: late reports of the workers, and their own calls in flight.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Protocol

from benchmarks.simulation.machine import Report
from benchmarks.simulation.traffic import Request

REST_S = 5.0
"""A worker that was lost is not asked for so long."""
_RING_POINTS = 50


@dataclass(frozen=True, slots=True)
class View:
    """What a gateway was told last."""

    revision: int
    reports: Mapping[int, Report]
    """By the worker's number; only of those that are in the fleet."""
    suspects: frozenset[int] = frozenset()


class Policy(Protocol):
    """One gateway's."""

    def follow(self, view: View) -> None: ...

    def pick(self, request: Request) -> int | None:
        """A worker that is not in `request.tried`, or None."""

    def sent(self, request: Request, worker: int) -> None: ...

    def answered(self, request: Request) -> None:
        """Its first token came."""

    def ended(self, request: Request, worker: int) -> None:
        """The worker has answered all of it."""

    def gave_up(self, request: Request) -> None:
        """Nobody is asked for it any more."""

    def refused(self, request: Request, worker: int, pending_s: float) -> None:
        """The worker is full, and said how far it is behind."""

    def lost(self, request: Request, worker: int) -> None:
        """The worker cannot be reached, or died with the call."""


class Counting:
    """What every other policy needs: who is there, and how many calls each has, as far as one can know."""

    def __init__(self, random: Random, clock: Callable[[], float]) -> None:
        self.random = random
        self.clock = clock
        self.workers: Sequence[int] = ()
        self._own: Counter[int] = Counter()
        self._others: dict[int, int] = {}
        self._resting: dict[int, float] = {}

    def follow(self, view: View) -> None:
        self.workers = [worker for worker in view.reports if worker not in view.suspects]
        self._others = {w: max(0, report.calls - self._own[w]) for w, report in view.reports.items()}

    def calls(self, worker: int) -> int:
        """Reported ones of others, and one's own."""
        return self._others.get(worker, 0) + self._own[worker]

    def may_be_asked(self, request: Request, worker: int) -> bool:
        return worker not in request.tried and self._resting.get(worker, 0.0) <= self.clock()

    def any_of(self, request: Request) -> int | None:
        """One at random."""
        for _ in range(32):
            if not self.workers:
                return None
            worker = self.workers[int(self.random.random() * len(self.workers))]
            if self.may_be_asked(request, worker):
                return worker
        return next((w for w in self.workers if self.may_be_asked(request, w)), None)

    def sent(self, request: Request, worker: int) -> None:
        self._own[worker] += 1

    def answered(self, request: Request) -> None:
        pass

    def ended(self, request: Request, worker: int) -> None:
        self._own[worker] -= 1

    def gave_up(self, request: Request) -> None:
        pass

    def refused(self, request: Request, worker: int, pending_s: float) -> None:
        self._own[worker] -= 1

    def lost(self, request: Request, worker: int) -> None:
        self._own[worker] -= 1
        self._resting[worker] = self.clock() + REST_S


class AtRandom(Counting):
    def pick(self, request: Request) -> int | None:
        return self.any_of(request)


class RoundRobin(Counting):
    def __init__(self, random: Random, clock: Callable[[], float]) -> None:
        super().__init__(random, clock)
        self._turn = random.randrange(1 << 20)

    def pick(self, request: Request) -> int | None:
        for _ in range(len(self.workers)):
            self._turn += 1
            worker = self.workers[self._turn % len(self.workers)]
            if self.may_be_asked(request, worker):
                return worker
        return None


class PowerOfTwo(Counting):
    """The one with fewer calls, of two at random."""

    def pick(self, request: Request) -> int | None:
        one, other = self.any_of(request), self.any_of(request)
        if one is None or other is None:
            return one
        return min(one, other, key=self.calls)


class SessionHash(Counting):
    """A session belongs to one worker, whatever its load: a ring of hashes, and the next where it refuses."""

    def __init__(self, random: Random, clock: Callable[[], float]) -> None:
        super().__init__(random, clock)
        self._points: dict[int, list[tuple[int, int]]] = {}
        self._ring: list[tuple[int, int]] = []

    def follow(self, view: View) -> None:
        before = self.workers
        super().follow(view)
        if self.workers != before:
            self._ring = sorted(point for worker in self.workers for point in self._points_of(worker))

    def _points_of(self, worker: int) -> list[tuple[int, int]]:
        if worker not in self._points:
            names = (f"{worker}/{point}" for point in range(_RING_POINTS))
            self._points[worker] = [(_place(name), worker) for name in names]
        return self._points[worker]

    def pick(self, request: Request) -> int | None:
        ring = self._ring
        begin = bisect_left(ring, (_place(request.session), 0))
        for step in range(len(ring)):
            worker = ring[(begin + step) % len(ring)][1]
            if self.may_be_asked(request, worker):
                return worker
        return None


def _place(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


Maker = Callable[[Random, Callable[[], float]], Policy]

BASELINES: Mapping[str, Maker] = {
    "random": AtRandom,
    "round robin": RoundRobin,
    "power of two": PowerOfTwo,
    "session hash": SessionHash,
}
