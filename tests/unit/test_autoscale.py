"""How many workers: the decision as a table, and in a town whose time is simulated."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field, replace

import pytest

from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.orchestrator.autoscale import Limits, Load, Scale, scaled, waiting_s

LIMITS = Limits(least=2, most=10)
LONG_AGO = -math.inf


def after(
    load: Load,
    *,
    desired: int = 2,
    held_s: float = 0.0,
    since_change_s: float = math.inf,
    limits: Limits = LIMITS,
) -> int:
    """What is decided when `load` has held for so long."""
    scale = Scale(desired, -since_change_s)
    scale = scaled(replace(scale, changed_at_s=0.0), load, -held_s, limits)
    assert scale.desired == desired, "nothing is decided before"
    return scaled(replace(scale, changed_at_s=-since_change_s), load, 0.0, limits).desired


@pytest.mark.parametrize(
    ("load", "held_s", "desired", "expected"),
    [
        # Pressed: more than a second of work waits per worker.
        (Load(2, 0, 0, 2.1), 2.0, 2, 3),
        (Load(2, 0, 0, 2.1), 1.9, 2, 2),
        (Load(2, 0, 0, 2.0), 60.0, 2, 2),
        # As many as the work asks for, at most twice as many as there were.
        (Load(2, 0, 0, 3.5), 2.0, 2, 4),
        (Load(2, 0, 0, 99.0), 2.0, 2, 4),
        (Load(4, 0, 0, 6.0), 2.0, 4, 6),
        (Load(8, 0, 0, 99.0), 2.0, 8, 10),
        (Load(10, 0, 0, 99.0), 60.0, 10, 10),
        # Those that it waits for were asked for already.
        (Load(2, 1, 0, 99.0), 60.0, 3, 3),
        # Of a fleet that nobody sees nothing is known.
        (Load(0, 0, 0, 0.0), 600.0, 4, 4),
        # Calm: one at a time, slowly, and only one that has nothing to do.
        (Load(4, 0, 2, 0.0), 60.0, 4, 3),
        (Load(4, 0, 4, 0.0), 600.0, 4, 3),
        (Load(4, 0, 2, 0.0), 59.0, 4, 4),
        (Load(4, 0, 0, 0.0), 600.0, 4, 4),
        (Load(4, 1, 2, 0.0), 600.0, 4, 4),
        (Load(4, 0, 2, 0.5), 600.0, 4, 4),
        (Load(2, 0, 2, 0.0), 600.0, 2, 2),
        # In between nothing happens, for however long.
        (Load(4, 0, 0, 2.0), 600.0, 4, 4),
    ],
)
def test_the_decision(load: Load, held_s: float, desired: int, expected: int) -> None:
    assert after(load, held_s=held_s, desired=desired) == expected


def test_after_a_change_it_waits_for_what_that_brings() -> None:
    pressed = Load(4, 0, 0, 99.0)
    assert after(pressed, desired=4, held_s=60, since_change_s=4.9) == 4
    assert after(pressed, desired=4, held_s=60, since_change_s=5.0) == 8


def test_a_moment_without_the_cause_starts_again() -> None:
    pressed, fine = Load(2, 0, 0, 99.0), Load(2, 0, 0, 0.5)
    scale = Scale(2, LONG_AGO)
    for now_s, load in enumerate([pressed, pressed, fine, pressed, pressed]):
        scale = scaled(scale, load, float(now_s), LIMITS)
    assert scale.desired == 2
    assert scaled(scale, pressed, 5.0, LIMITS).desired == 4
    calm, busy = Load(4, 0, 1, 0.0), Load(4, 0, 0, 0.0)
    scale = Scale(4, LONG_AGO)
    for now_s in range(600):
        scale = scaled(scale, busy if now_s % 50 == 0 else calm, float(now_s), LIMITS)
    assert scale.desired == 4, "all four were needed once a minute"


@pytest.mark.parametrize(("desired", "expected"), [(0, 2), (1, 2), (2, 2), (10, 10), (11, 10)])
def test_the_limits_hold_whatever_was_before(desired: int, expected: int) -> None:
    assert scaled(Scale(desired, 0.0), Load(1, 0, 0, 0.0), 0.0, LIMITS).desired == expected


@pytest.mark.parametrize("seed", range(20))
def test_any_figures_keep_it_within_its_limits_and_its_steps(seed: int) -> None:
    rng = random.Random(seed)
    scale, now_s = Scale(2, LONG_AGO), 0.0
    for _ in range(500):
        now_s += rng.choice([0.0, 1.0, 30.0])
        load = Load(rng.randrange(12), rng.randrange(3), rng.randrange(12), rng.choice([0.0, 0.3, 5.0, 1e9]))
        following = scaled(scale, load, now_s, LIMITS)
        assert LIMITS.least <= following.desired <= LIMITS.most
        assert scale.desired - 1 <= following.desired <= 2 * scale.desired
        if following.desired != scale.desired:
            assert now_s - scale.changed_at_s >= LIMITS.settle_s
        scale = following


@pytest.mark.parametrize(
    ("running", "queued", "pending_cost", "s_per_cost", "expected"),
    [
        (3, 0, 100.0, 0.1, 0.0),  # what runs cannot move
        (3, 1, 100.0, 0.1, 2.5),
        (0, 4, 100.0, 0.1, 10.0),
        (3, 4, 100.0, 0.0, 4.0),  # its speed is not known yet
        (0, 0, 0.0, 0.0, 0.0),
    ],
)
def test_only_what_waits_counts(
    running: int, queued: int, pending_cost: float, s_per_cost: float, expected: float
) -> None:
    model = ModelStatus(
        ModelSpec(name="m", backend="echo"), (), "cpu", running, queued,
        pending_cost=pending_cost, s_per_cost=s_per_cost,
    )  # fmt: skip
    assert waiting_s(model) == pytest.approx(expected)


# --- a town -----------------------------------------------------------------------------------------

START_S = 15.0
"""Until a new worker takes calls."""
SERVICE_S = 0.5


@dataclass
class Town:
    """Calls that arrive at random, workers that do one at a time, and a second hand that decides."""

    rate_per_s: float
    seed: int
    limits: Limits = LIMITS
    now_s: float = 0.0
    queue: deque[float] = field(default_factory=deque)
    busy: list[float] = field(default_factory=list)
    """When each running call ends."""
    serving: int = 2
    starting: list[float] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.scale = Scale(self.limits.least, LONG_AGO)
        self.next_s = 0.0

    def live(self, duration_s: float) -> None:
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            self.now_s += 1.0
            self._pass()
            idle = max(0, self.serving - len(self.busy))
            load = Load(self.serving, len(self.starting), idle, len(self.queue) * SERVICE_S)
            was, self.scale = self.scale.desired, scaled(self.scale, load, self.now_s, self.limits)
            if self.scale.desired != was:
                self.changes.append((self.now_s, self.scale.desired))
            there = self.serving + len(self.starting)
            self.starting += [self.now_s + START_S] * max(0, self.scale.desired - there)
            self.serving -= min(idle, max(0, there - self.scale.desired))

    def _pass(self) -> None:
        """The second that ends now, event by event."""
        self.next_s = max(self.next_s, self.now_s - 1.0)
        while self.next_s < self.now_s:
            self.next_s += self.rng.expovariate(self.rate_per_s) if self.rate_per_s else math.inf
            self._serve(min(self.next_s, self.now_s))
            if self.next_s < self.now_s:
                self.queue.append(self.next_s)
        self.serving += sum(ready_s <= self.now_s for ready_s in self.starting)
        self.starting = [ready_s for ready_s in self.starting if ready_s > self.now_s]
        self._serve(self.now_s)

    def _serve(self, until_s: float) -> None:
        while self.busy and self.busy[0] <= until_s:
            free_s = heapq.heappop(self.busy)
            self._begin(free_s)
        while self.queue and len(self.busy) < self.serving:
            self._begin(until_s)

    def _begin(self, at_s: float) -> None:
        if self.queue and len(self.busy) < self.serving:
            self.waits_s.append(at_s - self.queue.popleft())
            heapq.heappush(self.busy, at_s + self.rng.expovariate(1 / SERVICE_S))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("needed", [1.0, 2.5, 3.3, 5.0, 7.4])
def test_a_steady_load_finds_a_steady_number(needed: float, seed: int) -> None:
    town = Town(needed / SERVICE_S, seed)
    town.live(600)
    town.changes.clear()
    town.waits_s.clear()
    town.live(3600)
    # Never there and back within the minute that a step down takes.
    assert len(town.changes) <= 8, town.changes
    assert needed < town.serving <= min(10, 2 * needed + 2)
    assert sum(town.waits_s) / len(town.waits_s) < 2.0


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_brings_workers_at_once_and_its_end_takes_them_away_slowly(seed: int) -> None:
    town = Town(1.0 / SERVICE_S, seed)
    town.live(120)
    assert town.scale.desired == 2
    town.rate_per_s = 7.0 / SERVICE_S
    began_s = town.now_s
    town.live(60)
    assert town.changes[0][0] - began_s <= 10, "within seconds"
    assert town.scale.desired >= 8
    town.live(120)
    assert town.queue == deque() or town.scale.desired == 10
    town.rate_per_s = 0.2 / SERVICE_S
    town.changes.clear()
    town.live(1800)
    steps = [desired for _, desired in town.changes]
    assert steps == sorted(steps, reverse=True), "never up again"
    assert town.serving == 2
    gaps = [later[0] - earlier[0] for earlier, later in zip(town.changes, town.changes[1:], strict=False)]
    assert min(gaps) >= LIMITS.down_after_s


def test_waves_longer_than_its_memory_are_followed_and_shorter_ones_ridden_out() -> None:
    def changes(period_s: float) -> int:
        town = Town(1.0 / SERVICE_S, seed=1)
        for _ in range(10):
            town.rate_per_s = 6.0 / SERVICE_S
            town.live(period_s / 2)
            town.rate_per_s = 1.0 / SERVICE_S
            town.live(period_s / 2)
        return len(town.changes)

    assert changes(40.0) <= 8, "a wave of 40 s is no reason to stop and start workers"
    assert changes(1200.0) >= 40
