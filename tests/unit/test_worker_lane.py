"""The lane: bounded, fair, and no slot is ever lost."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from inferhub.core.call import Criticality
from inferhub.core.errors import DeadlineExceeded, Overloaded
from inferhub.worker.queue.fair import Ticket
from inferhub.worker.queue.lane import Lane

PATIENCE_S = 10.0
ANY = Ticket()
BATCH, INTERACTIVE, REALTIME = Criticality.BATCH, Criticality.INTERACTIVE, Criticality.REALTIME


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Desk:
    """A lane, and tasks that hold its slots until they are told to leave."""

    lane: Lane
    entered: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    releases: dict[str, asyncio.Event] = field(default_factory=dict)

    async def come(self, name: str, ticket: Ticket = ANY) -> None:
        self.releases[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, ticket))
        await settle()

    async def leave(self, name: str) -> None:
        self.releases[name].set()
        await settle()

    async def outcome(self, name: str) -> BaseException | None:
        async with asyncio.timeout(PATIENCE_S):
            (outcome,) = await asyncio.gather(self.tasks[name], return_exceptions=True)
        return outcome

    async def close(self) -> None:
        for release in self.releases.values():
            release.set()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        assert (self.lane.running, self.lane.queued, self.lane.pending_cost) == (0, 0, 0.0)

    async def _hold(self, name: str, ticket: Ticket) -> None:
        async with self.lane.slot(ticket):
            self.entered.append(name)
            await self.releases[name].wait()


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_calls_run_up_to_the_slots_then_wait_in_order_then_are_refused() -> None:
    desk = Desk(Lane(2, 3))
    for name in "abcde":
        await desk.come(name)
    assert (desk.entered, desk.lane.running, desk.lane.queued) == (["a", "b"], 2, 3)
    await desk.come("f")
    refused = await desk.outcome("f")
    assert isinstance(refused, Overloaded)
    assert 1.0 <= (refused.retry_after_s or 0) <= 60.0
    assert refused.pending_s is not None
    for position, name in enumerate("abcde"):
        await desk.leave(name)
        assert desk.entered == list("abcde")[: position + 3]
    await desk.close()


async def test_a_waiting_call_that_is_cancelled_leaves_the_queue_and_the_order() -> None:
    desk = Desk(Lane(1, 2))
    for name in "abc":
        await desk.come(name)
    desk.tasks["b"].cancel()
    await settle()
    assert (desk.lane.running, desk.lane.queued) == (1, 1)
    await desk.come("d")
    for name in "acd":
        await desk.leave(name)
    assert desk.entered == ["a", "c", "d"]
    await desk.close()


@pytest.mark.parametrize("order", ["cancel, release", "release, cancel", "hand over, cancel"])
async def test_a_cancel_in_the_moment_of_the_hand_over_loses_no_slot(order: str) -> None:
    desk = Desk(Lane(1, 2))
    for name in "abc":
        await desk.come(name)
    match order:
        case "cancel, release":
            desk.tasks["b"].cancel()
            desk.releases["a"].set()
        case "release, cancel":
            desk.releases["a"].set()
            desk.tasks["b"].cancel()
        case "hand over, cancel":
            # The second has the slot already, but its task did not run yet.
            desk.releases["a"].set()
            while desk.lane.queued != 1:
                await asyncio.sleep(0)
            assert desk.entered == ["a"]
            desk.tasks["b"].cancel()
    await settle()
    assert desk.entered == ["a", "c"]
    await desk.close()


async def test_a_failing_call_gives_its_slot_back() -> None:
    lane = Lane(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with lane.slot():
                raise ZeroDivisionError
    assert lane.running == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_cancelled_whenever_every_slot_comes_back(seed: int) -> None:
    """Random arrivals, ends and cancels, without a pause between: afterwards the lane is as good as new."""
    dice = random.Random(seed)
    clock = Clock()
    lane = Lane(dice.randint(1, 4), dice.randint(0, 12), clock=clock)
    releases: list[asyncio.Event] = []
    running, most = 0, 0

    async def hold(ticket: Ticket, release: asyncio.Event) -> None:
        nonlocal running, most
        async with lane.slot(ticket):
            running += 1
            most = max(most, running)
            try:
                await release.wait()
            finally:
                running -= 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        match dice.randrange(6):
            case 0 | 1 | 2:
                ticket = Ticket(
                    Criticality(dice.randrange(3)),
                    dice.choice("xyz"),
                    dice.choice([0.5, 1.0, 30.0]),
                    clock.now_s + dice.choice([0.5, 60.0]),
                )
                releases.append(asyncio.Event())
                tasks.append(asyncio.create_task(hold(ticket, releases[-1])))
            case 3 if tasks:
                dice.choice(tasks).cancel()
            case 4 if releases:
                dice.choice(releases).set()
            case 5:
                clock.now_s += dice.random()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    for release in releases:
        release.set()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        expected = (asyncio.CancelledError, Overloaded, DeadlineExceeded)
        assert outcome is None or isinstance(outcome, expected), outcome
    assert most <= lane._slots
    assert (lane.running, lane.queued, lane.pending_cost) == (0, 0, 0.0)
    clock.now_s += 1
    await asyncio.wait_for(_use_all(lane), 10)


async def _use_all(lane: Lane) -> None:
    gate = asyncio.Barrier(lane._slots)

    async def use() -> None:
        async with lane.slot():
            await gate.wait()

    await asyncio.gather(*(use() for _ in range(lane._slots)))


# --- order -------------------------------------------------------------------------------------


async def order_of(lane: Lane, tickets: dict[str, Ticket], clock: Clock | None = None) -> str:
    """The order in which these get the one slot, having come while it was taken."""
    desk = Desk(lane)
    await desk.come("0")
    for name, ticket in tickets.items():
        await desk.come(name, ticket)
    if clock:
        clock.now_s += 1.9
    await desk.leave("0")
    for _ in tickets:
        await desk.leave(desk.entered[-1])
    await desk.close()
    return "".join(desk.entered[1:])


async def test_the_more_critical_go_first_and_within_a_tenant_the_most_urgent() -> None:
    tickets = {
        "a": Ticket(BATCH, deadline_s=200),
        "b": Ticket(INTERACTIVE, deadline_s=300),
        "c": Ticket(INTERACTIVE, deadline_s=250),
        "d": Ticket(REALTIME, deadline_s=900),
    }
    assert await order_of(Lane(1, 9, clock=Clock()), tickets) == "dcba"


async def test_tenants_take_turns_by_cost_not_by_calls() -> None:
    """One sends six calls first; the other's calls cost a third, so three of them match one."""
    heavy = {name: Ticket(tenant="heavy", cost=3.0) for name in "ABCDEF"}
    light = {name: Ticket(tenant="light", cost=1.0) for name in "uvwxyz"}
    order = await order_of(Lane(1, 20, clock=Clock()), heavy | light)
    assert order == "uvAwxyBzCDEF"


async def test_a_tenant_saves_up_nothing_while_it_does_not_wait() -> None:
    desk = Desk(Lane(1, 20, clock=Clock()))
    await desk.come("0")
    for name in "ABCDEFGH":
        await desk.come(name, Ticket(tenant="busy"))
    for name in "0ABCD":
        await desk.leave(name)
    for name in "xyz":
        await desk.come(name, Ticket(tenant="late"))
    while desk.lane.running:
        await desk.leave(desk.entered[-1])
    assert "".join(desk.entered) in {"0ABCDExFyGzH", "0ABCDEFxGyHz"}
    await desk.close()


async def test_who_waits_long_rises_a_band() -> None:
    clock = Clock()
    lane = Lane(1, 9, clock=clock)
    desk = Desk(lane)
    await desk.come("0")
    await desk.come("old", Ticket(BATCH, deadline_s=900))
    clock.now_s += 2.1  # now it is as good as interactive, and older
    await desk.come("new", Ticket(INTERACTIVE, deadline_s=950))
    await desk.come("now", Ticket(REALTIME, deadline_s=999))
    for name in ("0", "now", "old", "new"):
        await desk.leave(name)
    assert desk.entered == ["0", "now", "old", "new"]
    await desk.come("0")
    await desk.come("older", Ticket(BATCH, deadline_s=900))
    clock.now_s += 4.2  # as good as live
    await desk.come("now", Ticket(REALTIME, deadline_s=999))
    await desk.leave("0")
    assert desk.entered[-1] == "older"
    await desk.close()


# --- bounds ------------------------------------------------------------------------------------


async def test_a_full_queue_makes_room_for_the_more_critical_by_the_newest_of_the_least() -> None:
    desk = Desk(Lane(1, 3, clock=Clock()))
    await desk.come("0")
    for name, kind in (("a", BATCH), ("b", INTERACTIVE), ("c", BATCH)):
        await desk.come(name, Ticket(kind))
    await desk.come("d", Ticket(BATCH))
    assert "calls wait already" in str(await desk.outcome("d"))
    await desk.come("e", Ticket(INTERACTIVE))
    ousted = await desk.outcome("c")
    assert isinstance(ousted, Overloaded)
    assert "interactive call took the place" in ousted.message
    assert ousted.reason == "shed_batch"
    await desk.come("f", Ticket(REALTIME))
    assert "realtime call took the place" in str(await desk.outcome("a"))
    await desk.come("g", Ticket(REALTIME))
    assert "realtime call took the place" in str(await desk.outcome("e"))
    for name in ("0", "f", "g", "b"):
        await desk.leave(name)
    assert desk.entered == ["0", "f", "g", "b"]
    await desk.close()


async def _work(lane: Lane, clock: Clock, cost: float, takes_s: float, *, fails: bool = False) -> None:
    async with lane.slot(Ticket(cost=cost)):
        clock.now_s += takes_s
        if fails:
            raise ZeroDivisionError


async def test_a_call_that_cannot_be_in_time_is_refused_at_once() -> None:
    clock = Clock()
    desk = Desk(Lane(1, 99, clock=clock))
    await _work(desk.lane, clock, cost=10, takes_s=20)
    clock.now_s += 1000  # idle time says nothing
    assert desk.lane.s_per_cost == pytest.approx(2.0)
    await desk.come("0", Ticket(cost=5))
    await desk.come("a", Ticket(tenant="a", cost=5, deadline_s=clock.now_s + 30))
    await desk.come("b", Ticket(tenant="a", cost=5, deadline_s=clock.now_s + 29))
    refused = await desk.outcome("b")
    assert isinstance(refused, Overloaded)
    assert (refused.pending_s, refused.retry_after_s) == (20.0, 20.0)
    assert "30.0 s" in refused.message
    # What is more critical does not wait for all that.
    await desk.come("c", Ticket(REALTIME, "a", cost=5, deadline_s=clock.now_s + 29))
    assert desk.lane.queued == 2
    await desk.close()


async def test_what_one_tenant_queues_is_no_reason_to_refuse_another() -> None:
    clock = Clock()
    desk = Desk(Lane(1, 99, clock=clock))
    await _work(desk.lane, clock, cost=1, takes_s=1)
    await desk.come("0")
    for number in range(30):
        await desk.come(f"crowd {number}", Ticket(tenant="crowd"))
    await desk.come("one", Ticket(tenant="other", deadline_s=clock.now_s + 5))
    await desk.leave("0")
    await desk.leave(desk.entered[-1])
    assert "one" in desk.entered
    await desk.close()


async def test_work_whose_time_is_over_is_not_begun() -> None:
    clock = Clock()
    desk = Desk(Lane(1, 9, clock=clock))
    await desk.come("0")
    await desk.come("a", Ticket(deadline_s=clock.now_s + 3))
    await desk.come("b", Ticket(deadline_s=clock.now_s + 9))
    clock.now_s += 4
    await desk.leave("0")
    assert isinstance(await desk.outcome("a"), DeadlineExceeded)
    assert desk.entered == ["0", "b"]
    await desk.close()


# --- the rate ----------------------------------------------------------------------------------


async def test_the_rate_is_that_of_all_slots_together() -> None:
    clock = Clock()
    desk = Desk(Lane(4, 9, clock=clock))
    for name in "abcd":
        await desk.come(name, Ticket(cost=5))
    assert (desk.lane.pending_cost, desk.lane.s_per_cost) == (20, 0)
    clock.now_s += 10
    for name in "abcd":
        await desk.leave(name)
    assert desk.lane.s_per_cost == pytest.approx(0.5)
    await desk.close()


async def test_calls_that_came_to_nothing_do_not_make_a_model_look_slow() -> None:
    clock = Clock()
    lane = Lane(2, 9, clock=clock)
    await _work(lane, clock, cost=10, takes_s=1)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            await _work(lane, clock, cost=10, takes_s=30, fails=True)
    await _work(lane, clock, cost=10, takes_s=1)
    assert lane.s_per_cost == pytest.approx(0.1)


async def test_few_calls_at_a_time_do_not_make_it_look_slow_either() -> None:
    """A stream at a time takes 10 s; four at a time do too. The rate of one is no reason to refuse."""
    clock = Clock()
    desk = Desk(Lane(4, 9, clock=clock))
    await _work(desk.lane, clock, cost=1, takes_s=10)
    for name in "abcd":
        await desk.come(name)
    await desk.come("e", Ticket(deadline_s=clock.now_s + 21))
    assert desk.lane.queued == 1
    await desk.close()
