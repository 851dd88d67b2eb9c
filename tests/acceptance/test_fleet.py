"""Three workers, an orchestrator and a gateway as processes, and what happens when one of them does not."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferhub.testing.fleet import QUICK, RunningFleet, running_fleet, spread_answers
from inferhub.testing.servers import ready_hub, run_command, start_service, wait_for
from inferhub.testing.steady import Steady

SPEC = """
models:
  - name: echo
    backend: echo
    options: {gap_s: 0.001}
  - name: slow
    backend: echo
    options: {gap_s: 0.1}
"""
NAMES = ("w1", "w2", "w3")
ALL_SERVE = dict.fromkeys(NAMES, "serving")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet"), SPEC, *NAMES) as found:
        yield found


async def test_calls_are_spread_over_all_workers(fleet: RunningFleet) -> None:
    streams = await spread_answers(fleet, "slow")
    of_each = Counter([await stream.upstream for stream in streams])
    assert max(of_each.values()) <= 4, of_each
    await asyncio.gather(*(stream.task for stream in streams))
    assert all(stream.is_whole for stream in streams)


async def test_a_killed_worker_costs_only_the_answers_it_had_begun(fleet: RunningFleet) -> None:
    streams = await spread_answers(fleet, "slow")
    with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
        fleet.workers["w2"].kill()
        await asyncio.gather(*(stream.task for stream in streams))
        await asyncio.to_thread(steady.more)
        await asyncio.to_thread(fleet.until, {"w1": "serving", "w3": "serving"})
    for stream in streams:
        if await stream.upstream == "w2":
            assert stream.error == "endpoint_lost", stream.events[-3:]
        else:
            assert stream.is_whole
    # Unary answers and streams that had not begun went to another worker by themselves.
    assert [made.said for made in steady.failed if made.status != 0] == []
    await asyncio.to_thread(fleet.start_worker, "w2")
    await asyncio.to_thread(fleet.until_serving, *NAMES)


async def test_a_frozen_worker_is_left_and_comes_back(fleet: RunningFleet) -> None:
    with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
        fleet.workers["w1"].send(signal.SIGSTOP)
        try:
            await asyncio.to_thread(fleet.until, {"w2": "serving", "w3": "serving"})
            before = len(steady.made)
            await asyncio.to_thread(steady.more)
            late = [made for made in steady.made[before:] if made.status != 200]
        finally:
            fleet.workers["w1"].send(signal.SIGCONT)
        await asyncio.to_thread(fleet.until, ALL_SERVE)
    # Once it is out, nobody is sent there; those that it held when it froze may have failed.
    assert [made.said for made in late if made.status != 0] == []


async def test_a_killed_orchestrator_costs_nothing(fleet: RunningFleet) -> None:
    streams = await spread_answers(fleet, "slow")
    with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
        fleet.orchestrator.kill()
        await asyncio.to_thread(steady.more)
        assert fleet.states() == ALL_SERVE
        await asyncio.to_thread(fleet.restart_orchestrator)
        await asyncio.to_thread(fleet.until, ALL_SERVE)
        # A new worker is only seen by a fleet that is followed again.
        await asyncio.to_thread(fleet.start_worker, "w4")
        await asyncio.to_thread(fleet.until_serving, *NAMES, "w4")
        await asyncio.to_thread(steady.more)
        assert fleet.workers.pop("w4").stop() == 0
        await asyncio.to_thread(fleet.until, ALL_SERVE)
    await asyncio.gather(*(stream.task for stream in streams))
    assert all(stream.is_whole for stream in streams)
    assert steady.failed == []


async def test_a_frozen_orchestrator_costs_nothing(fleet: RunningFleet) -> None:
    with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
        fleet.orchestrator.send(signal.SIGSTOP)
        try:
            # Longer than every lease: nobody may conclude anything from its silence.
            await asyncio.sleep(2.5)
            assert fleet.states() == ALL_SERVE
            await asyncio.to_thread(steady.more)
        finally:
            fleet.orchestrator.send(signal.SIGCONT)
        await asyncio.to_thread(steady.more)
        await asyncio.to_thread(fleet.until, ALL_SERVE)
    assert steady.failed == []


async def test_a_worker_that_leaves_finishes_its_answers(fleet: RunningFleet) -> None:
    streams = await spread_answers(fleet, "slow")
    with Steady(fleet.hub.url, fleet.hub.admin_key) as steady:
        fleet.workers["w3"].end()
        await asyncio.to_thread(
            wait_for, lambda: fleet.states().get("w3") != "serving", 10, "the gateway to see w3 leave"
        )
        await asyncio.to_thread(steady.more)
        assert await asyncio.to_thread(fleet.workers["w3"].wait) == 0
        await asyncio.gather(*(stream.task for stream in streams))
        await asyncio.to_thread(fleet.start_worker, "w3")
        await asyncio.to_thread(fleet.until_serving, *NAMES)
    assert all(stream.is_whole for stream in streams)
    assert steady.failed == []


def test_workers_are_listed_for_people(fleet: RunningFleet) -> None:
    table = run_command("workers", "--url", fleet.hub.url, "--key", fleet.hub.admin_key)
    assert table.exit_code == 0, table.stderr
    assert [line.split()[0] for line in table.stdout.splitlines()[1:] if line[0] == "w"] == list(NAMES)
    cards = json.loads(
        run_command("workers", "--url", fleet.hub.url, "--key", fleet.hub.admin_key, "--json").stdout
    )
    assert {card["id"] for card in cards if card["name"] in NAMES} == set(NAMES)


def test_a_gateway_that_knows_no_worker_says_how(tmp_path: Path) -> None:
    done = run_command("gateway", data_dir=tmp_path)
    assert done.exit_code != 0
    assert "--orchestrator" in done.stderr


def test_an_orchestrator_may_be_started_last(tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Bound and not listening: whoever connects is refused, and nobody else is given the port.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        spec_file = tmp_path / "hub.yaml"
        spec_file.write_text(SPEC, encoding="utf-8")
        settings = {**QUICK, "orchestrator": address, "spec_file": spec_file}
        gateway = start_service("gateway", tmp_path, settings)
    with gateway, start_service("worker", tmp_path, {**QUICK, "orchestrator": address}):
        wait_for(lambda: "waiting for an orchestrator" in gateway.stderr, 60, "the gateway to wait")
        with start_service("orchestrator", tmp_path, {**QUICK, "orchestrator_listen": address}):
            assert set(ready_hub("split", tmp_path, (gateway,)).models) == {"echo", "slow"}
    assert gateway.stderr.count("waiting for an orchestrator") == 1
