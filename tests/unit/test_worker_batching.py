"""What decides about batches: the choice, the fit, the cap and the patience. All pure, so all tables."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from inferhub.core.call import Criticality
from inferhub.worker.batching.cap import Cap
from inferhub.worker.batching.choose import Limits, Waiting, choose, padded_cost
from inferhub.worker.batching.fit import Fit, line
from inferhub.worker.batching.patience import Pace, wait_s

NOW_S = 1000.0
BATCH, INTERACTIVE, REALTIME = Criticality.BATCH, Criticality.INTERACTIVE, Criticality.REALTIME


@dataclass(frozen=True)
class Known:
    """A fit that is given instead of learnt."""

    s_per_cost: float = 0.0
    fixed_s: float | None = None

    def duration_s(self, modality: str, length: float, cost: float) -> float | None:
        return None if self.fixed_s is None else self.s_per_cost * cost + self.fixed_s

    def overhead(self, modality: str, length: float) -> float:
        return self.fixed_s / self.s_per_cost if self.fixed_s and self.s_per_cost else 0.0


def call(
    length: float = 10,
    *,
    cost: float = 0,
    left_s: float = 60,
    waited_s: float = 0,
    kind: Criticality = INTERACTIVE,
    tenant: str = "",
    modality: str = "embedding",
) -> Waiting:
    return Waiting(modality, cost or length, length, NOW_S + left_s, NOW_S - waited_s, kind, tenant)


def chosen(*waiting: Waiting, most: int = 32, cost: float = 1e9, fit: Known = Known()) -> list[int]:
    return choose(waiting, Limits(most, cost), fit, NOW_S)


CHOICES: dict[str, tuple[list[int], list[int]]] = {
    "nothing waits": (chosen(), []),
    "all that wait, at once": (chosen(call(), call(), call()), [0, 1, 2]),
    "no more than the limit": (chosen(*[call() for _ in range(9)], most=4), [0, 1, 2, 3]),
    "the most urgent first": (chosen(call(left_s=9), call(left_s=5), call(left_s=7), most=2), [1, 2]),
    "the most critical first": (
        chosen(call(kind=BATCH), call(kind=INTERACTIVE), call(kind=REALTIME), most=2),
        [2, 1],
    ),
    "who waited 2 s rises a band": (
        chosen(call(kind=BATCH, waited_s=2.5, left_s=5), call(left_s=6), most=1),
        [0],
    ),
    "who waited 4 s is as critical as any": (
        chosen(call(kind=BATCH, waited_s=4.5, left_s=5), call(kind=REALTIME, left_s=6), most=1),
        [0],
    ),
    "every tenant has its turn, by cost": (
        chosen(
            *[call(8, tenant="crowd") for _ in range(4)], call(8, tenant="one"), call(8, tenant="two"), most=4
        ),
        [0, 4, 5, 1],
    ),
    "one modality, the first one's": (
        chosen(call(left_s=5), call(modality="rerank"), call()),
        [0, 2],
    ),
    "alike in length: 20 % of padding at most": (chosen(call(10), call(15), call(16), call(30)), [0, 1, 2]),
    "the first goes, whatever its length": (chosen(call(30, left_s=5), call(10), call(25)), [0, 2]),
    "padding that costs less than a further batch is fine": (
        chosen(call(10), call(30), fit=Known(0.001, 0.025)),
        [0, 1],
    ),
    "padding that costs more is not": (chosen(call(10), call(30), fit=Known(0.001, 0.015)), [0]),
    "nobody is made late by its company": (
        # 10 ms a call and 10 ms: the first has 50 ms, of which 45 may be used.
        chosen(*[call(10, left_s=0.05)], *[call(10) for _ in range(9)], fit=Known(0.001, 0.01)),
        [0, 1, 2],
    ),
    "who could not be in time is left for a smaller batch": (
        chosen(call(10, left_s=9), call(10, left_s=9.5), call(10, left_s=0.03), fit=Known(0.001, 0.01)),
        [2],
    ),
    "the first goes even when it will be late": (chosen(call(left_s=0.001), fit=Known(1, 1)), [0]),
    "no more work than the limit": (chosen(*[call(10) for _ in range(9)], cost=45), [0, 1, 2, 3]),
    "the first goes alone when it is larger": (chosen(call(99, left_s=5), call(99), cost=45), [0]),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choose(name: str) -> None:
    got, expected = CHOICES[name]
    assert got == expected


@pytest.mark.parametrize("seed", range(50))
def test_any_choice_keeps_to_its_limits(seed: int) -> None:
    dice = random.Random(seed)
    waiting = [
        call(
            dice.uniform(1, 500),
            cost=dice.uniform(1, 2000),
            left_s=dice.uniform(0.01, 5),
            waited_s=dice.uniform(0, 9),
            kind=dice.choice(list(Criticality)),
            tenant=dice.choice("abc"),
            modality=dice.choice(["embedding", "rerank"]),
        )
        for _ in range(dice.randrange(1, 60))
    ]
    fit = Known(0.0001, 0.005)
    batch = choose(waiting, Limits(16, 4000), fit, NOW_S)
    picked = [waiting[position] for position in batch]
    assert len(set(batch)) == len(batch)
    assert 1 <= len(batch) <= 16
    assert len({one.modality for one in picked}) == 1
    if len(batch) > 1:
        padded, cost = padded_cost(picked), sum(one.cost for one in picked)
        assert padded <= 4000
        assert padded - cost <= max(0.2 * padded, fit.overhead("embedding", 1)) + 1e-6
        duration_s = fit.duration_s("embedding", 1, padded)
        assert duration_s is not None
        assert duration_s <= 0.9 * (min(one.deadline_s for one in picked) - NOW_S) + 1e-9


# --- fit ---------------------------------------------------------------------------------------


def test_the_fit_finds_the_line_under_noise_and_outliers() -> None:
    dice = random.Random(1)
    fit = Fit()
    for number in range(64):
        cost = dice.choice([10, 40, 90, 200, 320])
        took_s = 0.020 + 0.001 * cost * dice.uniform(0.95, 1.05)
        fit.learn("embedding", 12, cost, took_s * (9 if number % 5 == 0 else 1))  # a fifth was disturbed
    predicted = fit.duration_s("embedding", 12, 100)
    assert predicted is not None
    assert 0.105 < predicted < 0.135
    assert 14 < fit.overhead("embedding", 12) < 30


def test_the_fit_says_nothing_before_it_knows_and_keeps_kinds_apart() -> None:
    fit = Fit()
    for number in range(1, 4):
        fit.learn("embedding", 12, 10 * number, 0.1)
        assert fit.duration_s("embedding", 12, 10) is None
    fit.learn("embedding", 12, 40, 0.1)
    assert fit.duration_s("embedding", 15, 10) == pytest.approx(0.1)
    assert fit.duration_s("embedding", 200, 10) is None
    assert fit.duration_s("rerank", 12, 10) is None


def test_the_fit_forgets_what_is_long_past() -> None:
    fit = Fit()
    for took_s in (1.0, 0.01):
        for number in range(72):
            fit.learn("embedding", 12, 10 + number % 7, took_s)
    assert fit.duration_s("embedding", 12, 12) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("samples", "s_per_cost", "fixed_s"),
    [
        ([(10, 0.3), (20, 0.4), (30, 0.5)], 0.01, 0.2),
        ([(10, 0.2)] * 4, 0.02, 0.0),  # of one size: careful, all of it is by the cost
        ([(10, 0.1), (20, 0.3), (30, 0.5)], 0.015, 0.0),  # no batch begins before it begins
        ([(10, 0.5), (20, 0.4), (30, 0.3)], 0.0, 0.4),  # no work is less than none
    ],
)
def test_a_line_is_never_below_zero(
    samples: list[tuple[float, float]], s_per_cost: float, fixed_s: float
) -> None:
    found = line(samples)
    assert (found.s_per_cost, found.fixed_s) == (pytest.approx(s_per_cost), pytest.approx(fixed_s))


# --- cap and patience --------------------------------------------------------------------------


def test_the_cap_halves_and_climbs_back_by_one_every_20_good_batches() -> None:
    cap = Cap(32)
    cap.was_too_much(32)
    assert cap.calls == 16
    cap.was_too_much(10)
    assert cap.calls == 5
    for good, calls in ((19, 5), (1, 6), (20, 7)):
        for _ in range(good):
            cap.was_fine()
        assert cap.calls == calls
    for _ in range(20 * 40):
        cap.was_fine()
    assert cap.calls == 32
    for _ in range(9):
        cap.was_too_much(cap.calls)
    assert cap.calls == 1


@pytest.mark.parametrize(
    ("recent", "batch_s", "arrivals_per_s", "expected_s"),
    [
        ([2, 3], 0.030, 1000, 0.003),  # a tenth of a batch
        ([2, 3], 0.800, 1000, 0.005),  # and never long
        ([2, 3], 0.030, 300, 0.0),  # nobody would come meanwhile
        ([2, 20], 0.030, 1000, 0.0),  # they fill by themselves
        ([3], 0.030, 1000, 0.0),
        ([], 0.0, 0, 0.0),
    ],
)
def test_waiting_pays_only_where_batches_are_small_and_calls_many(
    recent: list[int], batch_s: float, arrivals_per_s: float, expected_s: float
) -> None:
    assert wait_s(recent, 32, batch_s, arrivals_per_s) == pytest.approx(expected_s)


def test_the_pace_is_that_of_the_last_while() -> None:
    pace = Pace()
    assert pace.wait_s(32, NOW_S) == 0
    for number in range(100):
        pace.arrived(NOW_S + number / 2000)
    pace.computed(2, 0.020)
    pace.computed(2, 0.020)
    assert pace.wait_s(32, NOW_S + 0.05) == pytest.approx(0.002)
    assert pace.wait_s(32, NOW_S + 60) == 0  # it was quiet since
    pace.computed(31, 0.020)
    assert pace.wait_s(32, NOW_S + 0.05) == 0
