"""Taking what is there, at once, against waiting for batches to fill: in virtual time, with the real choice.

Calls come at random, one engine computes n of them in b + a·n. The rule under test is `choose`, which never waits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from statistics import mean, quantiles

import pytest

from inferhub.worker.batching.choose import Limits, Waiting, choose
from inferhub.worker.batching.fit import Fit

CALLS = 6000
LIMITS = Limits(32)
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Result:
    mean_ms: float
    p99_ms: float
    calls_per_batch: float


def simulate(arrivals_per_s: float, fixed_s: float, each_s: float, wait_s: float) -> Result:
    """`wait_s`: how long the first of a batch that is not full waits for company; 0 is our rule."""
    dice = random.Random(7)
    at_s, coming = 0.0, list[float]()
    for _ in range(CALLS):
        at_s += dice.expovariate(arrivals_per_s)
        coming.append(at_s)
    waiting: list[Waiting] = []
    latencies_s: list[float] = []
    now_s, next_call, batches = 0.0, 0, 0
    fit = Fit()
    while len(latencies_s) < CALLS:
        while next_call < CALLS and coming[next_call] <= now_s:
            waiting.append(Waiting("embedding", 1.0, 1.0, coming[next_call] + PATIENCE_S, coming[next_call]))
            next_call += 1
        if not waiting:
            now_s = coming[next_call]
            continue
        ready_s = waiting[0].arrived_s + wait_s
        if len(waiting) < LIMITS.calls and now_s < ready_s and next_call < CALLS:
            now_s = min(ready_s, coming[next_call])
            continue
        positions = choose(waiting, LIMITS, fit, now_s)
        batch = [waiting[position] for position in positions]
        took_s = fixed_s + each_s * len(batch)
        now_s += took_s
        fit.learn("embedding", 1.0, float(len(batch)), took_s)
        batches += 1
        latencies_s += [now_s - call.arrived_s for call in batch]
        taken = set(positions)
        waiting = [call for position, call in enumerate(waiting) if position not in taken]
    p99_ms = quantiles(latencies_s, n=100)[98] * 1000
    return Result(mean(latencies_s) * 1000, p99_ms, CALLS / batches)


@pytest.mark.parametrize(("fixed_s", "each_s"), [(0.020, 0.002), (0.008, 0.0001)])
@pytest.mark.parametrize("arrivals_per_s", [10, 50, 100, 200, 300, 360])
def test_not_waiting_is_never_worse(arrivals_per_s: float, fixed_s: float, each_s: float) -> None:
    ours = simulate(arrivals_per_s, fixed_s, each_s, 0.0)
    for wait_s in (0.005, 0.010, 0.050):
        theirs = simulate(arrivals_per_s, fixed_s, each_s, wait_s)
        assert ours.mean_ms <= theirs.mean_ms * 1.02, (wait_s, ours, theirs)
        assert ours.p99_ms <= theirs.p99_ms * 1.02, (wait_s, ours, theirs)


def test_batches_fill_by_themselves_exactly_when_there_is_much_to_do() -> None:
    few, some, many = (simulate(rate, 0.020, 0.002, 0.0).calls_per_batch for rate in (10, 100, 360))
    assert few < 1.5
    assert 2.5 < some < 6
    assert many > 20


def test_at_little_load_a_call_takes_what_it_takes_alone() -> None:
    assert simulate(10, 0.020, 0.002, 0.0).mean_ms == pytest.approx(24, abs=1.5)
    assert simulate(10, 0.020, 0.002, 0.050).mean_ms > 60
