"""The production scheduler in a simulated fleet, against what others do; and what one of its decisions costs.

The simulation runs in virtual time from fixed seeds: its figures are the same on every machine and under any
load. Only the cost of a decision is real time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from statistics import median

from benchmarks.measure import Figure, Measure, Options, Outcome, at_most
from benchmarks.simulation.decisions import SIZES, cost_us
from benchmarks.simulation.machine import KINDS
from benchmarks.simulation.scenarios import BURST_CALLS, POLICIES, SCENARIOS, Scenario, burst, play

_SEEDS = 20
_QUICK_WORKERS = 200
_REPEATS = 15
Row = dict[str, float | None]

_BURSTS: Mapping[str, dict[str, object]] = {
    "equal workers": {},
    "mixed GPUs": {"kinds": KINDS},
    "one prompt": {"alike": True},
    "4 gateways": {"gateways": 4},
}


def run(options: Options) -> Outcome:
    # First, while this process is small and alone.
    decisions = _decisions(6 if options.quick else _REPEATS)
    jobs = list(product(SCENARIOS, POLICIES))
    workers = [min(s.workers, _QUICK_WORKERS) if options.quick else s.workers for s, _ in jobs]
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        try:
            found = list(pool.map(_row, [s for s, _ in jobs], [policy for _, policy in jobs], workers))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    tables: dict[str, dict[str, Row]] = {scenario.name: {} for scenario in SCENARIOS}
    for (scenario, policy), row in zip(jobs, found, strict=True):
        tables[scenario.name][policy] = row
    bursts = {kind: _bursts(given) for kind, given in _BURSTS.items()}
    figures = (*_cost_figures(decisions), *_burst_figures(bursts), *_order_figures(tables))
    details = {
        "scenarios": {s.name: {"what": s.what, "policies": tables[s.name]} for s in SCENARIOS},
        "bursts_of": BURST_CALLS,
        "bursts": bursts,
        "decision_us": decisions,
    }
    return Outcome(figures, details, table=tuple(_table(tables)))


def _decisions(repeats: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for size in SIZES:
        plain, noted = cost_us(size, repeats, has_prompt=False)
        prompt, noted_prompt = cost_us(size, repeats, has_prompt=True)
        found[str(size)] = {
            "plain": plain,
            "with_prompt_and_session": prompt,
            "noting": noted,
            "noting_with_prompt": noted_prompt,
        }
    return found


def _row(scenario: Scenario, policy: str, workers: int) -> Row:
    score = play(scenario, policy, workers=workers)
    return {
        "workers": workers,
        "calls": score.calls,
        "mean_s": score.mean_s,
        "p50_s": score.percentile_s(50),
        "p99_s": score.percentile_s(99),
        "prefix_hit_rate": score.hit_rate if scenario.mix.systems else None,
        "max_over_mean_load": score.imbalance,
        "rejected": score.rejected,
        "refusals_of_workers": score.refusals,
        "broken": score.broken,
    }


def _bursts(given: Mapping[str, object]) -> dict[str, dict[str, float]]:
    found = {}
    for policy in POLICIES:
        loads = [burst(policy, seed=seed, **given) for seed in range(_SEEDS)]  # type: ignore[arg-type]
        found[policy] = {"median": median(loads), "worst": max(loads)}
    return found


def _cost_figures(decisions: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    figures = [
        Figure(
            "a decision at 1,000 endpoints",
            decisions["1000"]["plain"],
            "us",
            at_most(20),
            "CPU of begin and next",
        ),
        Figure(
            "the same with a session and a prompt to look up",
            decisions["1000"]["with_prompt_and_session"],
            "us",
            at_most(20),
        ),
    ]
    figures += [
        Figure(f"a decision at {int(size):,} endpoints", found["plain"], "us")
        for size, found in decisions.items()
        if size != "1000"
    ]
    figures.append(Figure("noting that it was sent and ended", decisions["1000"]["noting"], "us"))
    return figures


def _burst_figures(bursts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Figure]:
    target = {"equal workers": at_most(1.3), "mixed GPUs": at_most(1.3)}
    figures = []
    for kind, found in bursts.items():
        ours = found["ours"]
        others = ", ".join(f"{name} {found[name]['median']:.2f}" for name in ("power of two", "random"))
        note = f"worst of {_SEEDS} seeds {ours['worst']:.2f}; {others}"
        name = f"burst of {BURST_CALLS}, {kind}: max/mean load"
        figures.append(Figure(name, ours["median"], "x", target.get(kind), note))
    return figures


def _order_figures(tables: Mapping[str, Mapping[str, Row]]) -> list[Figure]:
    figures = []
    for scenario, rows in tables.items():
        ours, two, chance = (rows[name]["p99_s"] for name in ("ours", "power of two", "random"))
        assert ours is not None
        assert two is not None
        assert chance is not None
        note = f"{ours:.3g} s; power of two over random {two / chance:.2g} x"
        figures.append(Figure(f"{scenario}: p99 over power of two's", ours / two, "x", at_most(1), note))
    return figures


def _table(tables: Mapping[str, Mapping[str, Row]]) -> list[tuple[str, ...]]:
    """The columns that people compare."""
    rows: list[tuple[str, ...]] = [
        ("scenario", "policy", "mean", "p50", "p99", "prefix hits", "max/mean load", "rejected", "broken")
    ]
    for scenario, policies in tables.items():
        for policy, row in policies.items():
            hits = row["prefix_hit_rate"]
            rows.append(
                (
                    scenario,
                    policy,
                    *(f"{row[name]:.3f} s" for name in ("mean_s", "p50_s", "p99_s")),
                    "–" if hits is None else f"{hits:.0%}",
                    f"{row['max_over_mean_load']:.2f}",
                    f"{row['rejected']:.0f} of {row['calls']:.0f}",
                    f"{row['broken']:.0f}",
                )
            )
    return rows


MEASURE = Measure(
    "routing", "the scheduler in a simulated fleet of 1,000 workers", run, order=14, limit_s=900
)
