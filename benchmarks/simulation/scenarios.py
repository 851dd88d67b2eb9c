"""The cases of the simulation and who takes part in them. Called by the measure `routing` and by its test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.simulation.machine import KINDS, Kind
from benchmarks.simulation.policies import BASELINES, Maker
from benchmarks.simulation.production import ours
from benchmarks.simulation.traffic import CHAT, PREFIXES, SHORT, STEADY, Mix, Prompt, Request, Rhythm, traffic
from benchmarks.simulation.world import Loss, Score, Setup, simulate
from inferhub.core.scheduling import Scheduling

GATEWAYS = 4


def _as_it_is(maker: Maker) -> Maker:
    return maker


POLICIES: Mapping[str, Callable[[], Maker]] = {
    **{name: partial(_as_it_is, maker) for name, maker in BASELINES.items()},
    "ours": ours,
    "ours, no gate": lambda: ours(scheduling=replace(Scheduling(), gate_s=math.inf)),
    "ours, reports only": lambda: ours(counts_own=False),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    what: str
    mix: Mix
    load: float
    """Of the fleet's capacity, were no beginning of a prompt known anywhere."""
    rhythm: Rhythm = STEADY
    workers: int = 1000
    duration_s: float = 20.0
    warm_up_s: float = 5.0
    lost: float = 0.0
    """Share of the workers that are killed at 40 % of the time and come back at 70 %."""


SCENARIOS = (
    Scenario("steady", "chat at 70 % of the capacity", CHAT, 0.7),
    Scenario("bursts", "chat; ten times as much for a second every ten", CHAT, 0.6, Rhythm(peak=10)),
    Scenario("prefixes", "long system prompts, long sessions, short answers", PREFIXES, 0.95),
    Scenario("loss", "chat; a tenth of the workers killed, back later", CHAT, 0.7, lost=0.1),
    Scenario(
        "short calls",
        "embeddings of 50 ms, reports of a second",
        SHORT,
        0.7,
        workers=100,
        duration_s=4,
        warm_up_s=1,
    ),
)


def fleet(workers: int) -> list[Kind]:
    """Half small, a third medium, the rest large."""
    small, medium = workers // 2, workers * 3 // 10
    return [KINDS[0]] * small + [KINDS[1]] * medium + [KINDS[2]] * (workers - small - medium)


def play(scenario: Scenario, policy: str, *, seed: int = 1, workers: int | None = None) -> Score:
    """One run; the same traffic and the same losses for every policy."""
    kinds = fleet(workers or scenario.workers)
    requests = traffic(
        scenario.mix,
        scenario.rhythm,
        capacity=sum(kind.capacity for kind in kinds),
        load=scenario.load,
        duration_s=scenario.duration_s,
        gateways=GATEWAYS,
        seed=seed,
    )
    loss = (
        Loss(scenario.lost, 0.4 * scenario.duration_s, 0.7 * scenario.duration_s) if scenario.lost else None
    )
    setup = Setup(
        kinds, requests, GATEWAYS, scenario.duration_s, warm_up_s=scenario.warm_up_s, loss=loss, seed=seed
    )
    return simulate(setup, POLICIES[policy]())


BURST_CALLS = 200
BURST_WORKERS = 20
_BURST_TOKENS = (400, 80)


def burst(
    policy: str, *, seed: int, kinds: tuple[Kind, ...] = (KINDS[1],), gateways: int = 1, alike: bool = False
) -> float:
    """200 calls in the same instant on 20 idle workers: the load of the busiest over the mean, load being the
    calls that it got for its capacity. `alike`: all of them begin alike, and nobody has read that yet."""
    prompt, output = _BURST_TOKENS
    requests = []
    for number in range(BURST_CALLS):
        asked = Prompt((1, 2, 3), (100, 200, 300), prompt) if alike else Prompt((), (), prompt)
        request = Request(0.001, f"s{number}", asked, output)
        request.number, request.gateway = number, number % gateways
        requests.append(request)
    workers = [kinds[number % len(kinds)] for number in range(BURST_WORKERS)]
    # Each has measured how fast it is.
    s_per_cost = requests[0].work_s / requests[0].cost
    score = simulate(
        Setup(workers, requests, gateways, 1.0, seed=seed, s_per_cost=s_per_cost), POLICIES[policy]()
    )
    loads = [placed / kind.capacity for placed, kind in zip(score.placed, workers, strict=True)]
    return max(loads) * len(loads) / sum(loads)
