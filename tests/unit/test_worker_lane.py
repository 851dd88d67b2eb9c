"""The lane: bounded, first in first out, and no slot is ever lost."""

from __future__ import annotations

import asyncio

import pytest

from inferhub.core.errors import Overloaded
from inferhub.worker.lane import Lane


async def hold(lane: Lane, release: asyncio.Event, entered: list[int], number: int) -> None:
    async with lane.slot():
        entered.append(number)
        await release.wait()


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_calls_run_up_to_the_slots_then_wait_in_order_then_are_refused() -> None:
    lane, entered = Lane(2, 3), list[int]()
    releases = [asyncio.Event() for _ in range(5)]
    tasks = [asyncio.create_task(hold(lane, releases[n], entered, n)) for n in range(5)]
    await settle()
    assert (entered, lane.running, lane.queued) == ([0, 1], 2, 3)
    with pytest.raises(Overloaded) as refused:
        await hold(lane, releases[0], entered, 99)
    assert 1.0 <= (refused.value.retry_after_s or 0) <= 60.0
    for number, release in enumerate(releases):
        release.set()
        await settle()
        assert entered == list(range(min(number + 3, 5)))
    await asyncio.gather(*tasks)
    assert (lane.running, lane.queued) == (0, 0)


async def test_a_waiting_call_that_is_cancelled_leaves_the_queue_and_the_order() -> None:
    lane, entered, release = Lane(1, 2), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(hold(lane, release, entered, n)) for n in range(3)]
    await settle()
    tasks[1].cancel()
    await settle()
    assert (lane.running, lane.queued) == (1, 1)
    tasks.append(asyncio.create_task(hold(lane, release, entered, 3)))
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered == [0, 2, 3]
    assert (lane.running, lane.queued) == (0, 0)


@pytest.mark.parametrize("order", ["cancel, release", "release, cancel", "hand over, cancel"])
async def test_a_cancel_in_the_moment_of_the_hand_over_loses_no_slot(order: str) -> None:
    lane, entered = Lane(1, 2), list[int]()
    releases = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(hold(lane, releases[n], entered, n)) for n in range(3)]
    await settle()
    match order:
        case "cancel, release":
            tasks[1].cancel()
            releases[0].set()
        case "release, cancel":
            releases[0].set()
            tasks[1].cancel()
        case "hand over, cancel":
            # Call 1 has the slot already, but its task did not run yet.
            releases[0].set()
            while lane.queued != 1:
                await asyncio.sleep(0)
            assert entered == [0]
            tasks[1].cancel()
    await settle()
    assert entered == [0, 2]
    releases[2].set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (lane.running, lane.queued) == (0, 0)


async def test_a_failing_call_gives_its_slot_back() -> None:
    lane = Lane(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with lane.slot():
                raise ZeroDivisionError
    assert lane.running == 0
