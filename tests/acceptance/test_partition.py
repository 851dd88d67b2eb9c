"""A worker behind a cable that is cut: lost without a word, left, and taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferhub.testing.fleet import RunningFleet, running_fleet, spread_answers
from inferhub.testing.island import Island, island, why_not
from inferhub.testing.steady import Steady

SPEC = """
models:
  - name: echo
    backend: echo
  - name: slow
    backend: echo
    options: {gap_s: 0.1}
"""
TOKEN = "a token that only this fleet has"

if reason := why_not():
    pytest.skip(f"a partition needs network namespaces: {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def far() -> Iterator[Island]:
    with island() as found:
        yield found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, far: Island) -> Iterator[RunningFleet]:
    folder: Path = tmp_path_factory.mktemp("partition")
    settings = {"worker_token": TOKEN, "idle_timeout_s": 2, "breaker_failures": 0}
    listens = {"orchestrator_listen": f"{far.here}:0"}
    with running_fleet(folder, SPEC, "near", settings=settings, of_orchestrator=listens) as found:
        found.start_worker("far", within=far.within, worker_listen=f"{far.there}:0", metrics_host=far.there)
        found.until_serving("near", "far")
        yield found


async def test_a_cut_cable_is_noticed_and_a_healed_one_too(fleet: RunningFleet, far: Island) -> None:
    answers = await spread_answers(fleet, "slow")
    far.cut()
    try:
        with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
            await asyncio.to_thread(fleet.until, {"near": "serving"})
            before = len(steady.made)
            await asyncio.to_thread(steady.more)
            # Streams that went there before anybody knew may break off; nobody is sent there any more.
            late = [made.said for made in steady.made[before:] if made.status not in (0, 200)]
        await asyncio.gather(*(answer.task for answer in answers))
    finally:
        far.heal()
    assert late == []
    for answer in answers:
        if await answer.upstream == "near":
            assert answer.is_whole
        else:
            # Not kept waiting for ever: the silence ends it.
            assert answer.error in ("endpoint_stalled", "endpoint_lost"), answer.events[-2:]
    await asyncio.to_thread(fleet.until_serving, "near", "far")
    again = await spread_answers(fleet, "slow")
    await asyncio.gather(*(answer.task for answer in again))
    assert all(answer.is_whole for answer in again)
