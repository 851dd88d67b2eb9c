"""What one decision of the production router costs, as the fleet grows: the only real time in here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from benchmarks.simulation.machine import REPORTED_PREFIXES, Report
from benchmarks.simulation.production import MODEL, endpoint_of
from inferhub.core.call import Call
from inferhub.pipeline.directory import Directory
from inferhub.routing import Router, RouterLimits
from inferhub.testing.calls import make_call

SIZES = (10, 100, 1_000, 10_000)
_CALLS = 500
_KNOWN = 4_000
"""Beginnings of prompts that anybody has."""
_PIECES = 8
"""Of one prompt."""


def cost_us(size: int, repeats: int, *, has_prompt: bool) -> tuple[float, float]:
    """(choosing, and noting that the call was sent and ended): microseconds of CPU for one call, the least of
    all repeats. `has_prompt`: with a session and a prompt whose beginnings some endpoints have."""
    random = Random(size)
    directory = _directory(size, random)
    router = Router(RouterLimits(), random=random)
    calls = _calls(random, has_prompt=has_prompt)
    router.begin(calls[0], directory).next(None)  # takes over the snapshot; not counted
    found = [_once(router, directory, calls) for _ in range(repeats)]
    return min(choosing for choosing, _ in found), min(noting for _, noting in found)


def _once(router: Router, directory: Directory, calls: Sequence[Call]) -> tuple[float, float]:
    clock = time.process_time_ns
    choosing = noting = 0
    for call in calls:
        begin = clock()
        journey = router.begin(call, directory)
        candidate = journey.next(None)
        chosen = clock()
        assert candidate is not None
        with journey, journey.try_(candidate) as trial:
            trial.first_content()
            trial.succeeded()
        noting += clock() - chosen
        choosing += chosen - begin
    return choosing / 1e3 / len(calls), noting / 1e3 / len(calls)


def _directory(size: int, random: Random) -> Directory:
    known = range(1, _KNOWN)
    endpoints = []
    for number in range(size):
        calls = random.randrange(6)
        prefixes = tuple(random.sample(known, REPORTED_PREFIXES))
        report = Report(calls, 0, calls * 500.0, random.uniform(0.5e-3, 2e-3), prefixes, 0.0, (1, 1))
        endpoints.append(endpoint_of(number, report))
    return Directory({MODEL: tuple(endpoints)}, revision=1)


def _calls(random: Random, *, has_prompt: bool) -> list[Call]:
    model = replace(make_call("chat", MODEL, stream=True), deadline_s=math.inf, cost=500.0)
    if not has_prompt:
        return [model] * _CALLS
    return [
        replace(
            model,
            session=f"{random.getrandbits(48):012x}",
            prefixes=tuple(random.sample(range(1, _KNOWN), 2))
            + tuple(random.getrandbits(62) for _ in range(_PIECES - 2)),
        )
        for _ in range(_CALLS)
    ]
