"""The clock and the wires of the simulation: calls to workers, late reports to gateways, and the score.

A heap of events in virtual time. Called by `scenarios`; asks a `Policy` and knows nothing of how it chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from benchmarks.simulation.machine import Kind, Machine, Report
from benchmarks.simulation.policies import Maker, Policy, View
from benchmarks.simulation.traffic import Request
from benchmarks.stats import percentile

HOP_S = 0.001
BEAT_S = 1.0
BEAT_DELAY_S = (0.02, 0.25)
"""A report is so much older when it reaches the orchestrator."""
VIEW_S = 0.25
"""How often gateways get a new view, each a little later than another."""
SUSPECT_S = 2.5
LEASE_S = 5.0
MAX_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Loss:
    """Some workers are killed at a time, and come back with nothing at another."""

    share: float
    at_s: float
    back_s: float


@dataclass(frozen=True, slots=True)
class Setup:
    """One run."""

    kinds: Sequence[Kind]
    """Of each worker."""
    requests: Sequence[Request]
    gateways: int
    duration_s: float
    warm_up_s: float = 0.0
    loss: Loss | None = None
    seed: int = 1
    s_per_cost: float = 0.0
    """What workers measured before, as of one slot of speed 1; 0: nothing yet."""


@dataclass(slots=True)
class Score:
    """What came of it. Calls of the warm-up are answered and not counted."""

    first_s: list[float] = field(default_factory=list)
    calls: int = 0
    rejected: int = 0
    broken: int = 0
    """Died with their worker after their first token."""
    refusals: int = 0
    """Of workers; most were taken by another."""
    known_tokens: int = 0
    repeated_tokens: int = 0
    """Of prompts whose beginning somebody had sent before."""
    loads: list[float] = field(default_factory=list)
    """Of each worker that lived through it: busy share of its slots."""
    placed: list[int] = field(default_factory=list)
    """Calls that each worker took."""

    @property
    def mean_s(self) -> float:
        return sum(self.first_s) / len(self.first_s)

    def percentile_s(self, percent: float) -> float:
        return percentile(self.first_s, percent)

    @property
    def hit_rate(self) -> float:
        return self.known_tokens / self.repeated_tokens if self.repeated_tokens else 0.0

    @property
    def imbalance(self) -> float:
        """The busiest worker over the mean."""
        return max(self.loads) * len(self.loads) / sum(self.loads)


class World:
    def __init__(self, setup: Setup, maker: Maker) -> None:
        self._setup = setup
        self._random = Random(setup.seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self.now_s = 0.0
        self._machines = [Machine(number, kind) for number, kind in enumerate(setup.kinds)]
        for machine in self._machines:
            machine.s_per_cost = setup.s_per_cost / machine.kind.capacity
        self._reports: dict[int, Report] = {}
        self._revision = 0
        seeds = [self._random.getrandbits(32) for _ in range(setup.gateways)]
        self._policies: list[Policy] = [maker(Random(seed), lambda: self.now_s) for seed in seeds]
        self._seen: set[int] = set()
        self._busy_s = [0.0] * len(self._machines)
        self.score = Score(placed=[0] * len(self._machines))

    def run(self) -> Score:
        for machine in self._machines:
            self._arrived(machine.number, machine.report(0.0))
            self._at(self._random.random() * BEAT_S, self._beat, machine)
        self._publish()
        if self._setup.loss is not None:
            self._plan_loss(self._setup.loss)
        for request in self._setup.requests:
            self._at(request.at_s, self._try, request)
        events = self._events
        while events:
            self.now_s, _, act, given = heappop(events)
            act(*given)
        self._settle()
        return self.score

    def _at(self, when_s: float, act: Callable[..., None], *given: object) -> None:
        heappush(self._events, (when_s, next(self._order), act, given))

    # --- signals -----------------------------------------------------------------------------------

    def _beat(self, machine: Machine) -> None:
        if self._is_over:
            return
        if machine.is_alive:
            delay_s = self._random.uniform(*BEAT_DELAY_S)
            self._at(self.now_s + delay_s, self._arrived, machine.number, machine.report(self.now_s))
        self._at(self.now_s + BEAT_S, self._beat, machine)

    def _arrived(self, worker: int, report: Report) -> None:
        self._reports[worker] = report

    def _publish(self) -> None:
        oldest_s = self.now_s - LEASE_S
        suspect_s = self.now_s - SUSPECT_S
        reports = {w: report for w, report in self._reports.items() if report.at_s >= oldest_s}
        suspects = frozenset(w for w, report in reports.items() if report.at_s < suspect_s)
        self._revision += 1
        view = View(self._revision, reports, suspects)
        for policy in self._policies:
            delay_s = self._random.random() * 0.05 if self._revision > 1 else 0.0
            self._at(self.now_s + delay_s, policy.follow, view)
        if not self._is_over:
            self._at(self.now_s + VIEW_S, self._publish)

    @property
    def _is_over(self) -> bool:
        """Nothing comes any more; what is under way ends."""
        return self.now_s > self._setup.duration_s

    # --- the way of a call -------------------------------------------------------------------------

    def _try(self, request: Request) -> None:
        policy = self._policies[request.gateway]
        worker = policy.pick(request) if len(request.tried) <= MAX_RETRIES else None
        if worker is None:
            policy.gave_up(request)
            self._count(request)
            self.score.rejected += request.at_s >= self._setup.warm_up_s
            return
        request.tried.append(worker)
        policy.sent(request, worker)
        self._at(self.now_s + HOP_S, self._reaches, request, self._machines[worker])

    def _reaches(self, request: Request, machine: Machine) -> None:
        policy = self._policies[request.gateway]
        if not machine.is_alive:
            policy.lost(request, machine.number)
            self._try(request)
        elif machine.takes(request):
            self.score.placed[machine.number] += 1
            self._start(machine)
        else:
            self.score.refusals += 1
            policy.refused(request, machine.number, machine.pending_cost * machine.s_per_cost)
            self._at(self.now_s + HOP_S, self._try, request)

    def _start(self, machine: Machine) -> None:
        while (started := machine.starts()) is not None:
            request, first_s, rest_s = started
            repeated = [
                t for p, t in zip(request.prefixes, request.prefix_tokens, strict=True) if p in self._seen
            ]
            self._seen.update(request.prefixes)
            if request.at_s >= self._setup.warm_up_s:
                self.score.known_tokens += request.cached_tokens
                self.score.repeated_tokens += max(repeated, default=0)
            self._at(self.now_s + first_s, self._answers, request, machine, machine.life)
            self._at(
                self.now_s + first_s + rest_s, self._ends, request, machine, machine.life, first_s + rest_s
            )

    def _answers(self, request: Request, machine: Machine, life: int) -> None:
        if machine.life == life:
            request.first_s = self.now_s + HOP_S - request.at_s
            self._policies[request.gateway].answered(request)

    def _ends(self, request: Request, machine: Machine, life: int, took_s: float) -> None:
        if machine.life != life:
            return
        machine.ends(request, took_s)
        begin_s = max(self.now_s - took_s, self._setup.warm_up_s)
        self._busy_s[machine.number] += max(0.0, min(self.now_s, self._setup.duration_s) - begin_s)
        self._policies[request.gateway].ended(request, machine.number)
        self._count(request)
        self._start(machine)

    def _count(self, request: Request) -> None:
        if request.at_s >= self._setup.warm_up_s:
            self.score.calls += 1
            if request.first_s is not None:
                self.score.first_s.append(request.first_s)

    # --- losing workers ----------------------------------------------------------------------------

    def _plan_loss(self, loss: Loss) -> None:
        chosen = self._random.sample(self._machines, round(loss.share * len(self._machines)))
        for machine in chosen:
            self._at(loss.at_s, self._kill, machine)
            self._at(loss.back_s, machine.begin)

    def _kill(self, machine: Machine) -> None:
        for request in machine.end():
            self._policies[request.gateway].lost(request, machine.number)
            if request.first_s is None:
                self._try(request)
            else:
                self._policies[request.gateway].gave_up(request)
                self._count(request)
                self.score.broken += request.at_s >= self._setup.warm_up_s

    def _settle(self) -> None:
        counted_s = self._setup.duration_s - self._setup.warm_up_s
        for machine in self._machines:
            if machine.life == 0:
                self.score.loads.append(self._busy_s[machine.number] / machine.kind.slots / counted_s)


def simulate(setup: Setup, maker: Maker) -> Score:
    for request in setup.requests:
        request.tried.clear()
        request.first_s = None
        request.cached_tokens = 0
    return World(setup, maker).run()
