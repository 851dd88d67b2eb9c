"""The limit of calls at one endpoint: its rules, and a whole overload played through in virtual time."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest

from inferhub.core.call import Criticality
from inferhub.routing import concurrency
from inferhub.routing.concurrency import Bounds, Caller, Sample, bounds_of, fresh
from inferhub.routing.room import Place, Room

REALTIME, INTERACTIVE, BATCH = Criticality
FOUR = bounds_of(4, 64)
SETTLED_S = 10.0
"""An overload first fills the queue, which is there for bursts, and what has filled it is answered first."""


# --- bounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "queue", "batch", "bounds"),
    [
        (4, 64, 0, Bounds(4, 4, 6, 68)),
        (1, 64, 0, Bounds(1, 1, 3, 65)),
        (100, 64, 0, Bounds(100, 100, 125, 164)),
        # Without a queue there is nothing to lower.
        (4, 0, 0, Bounds(4, 4, 4, 4)),
        (1, 1, 0, Bounds(1, 1, 2, 2)),
        # A batch is computed while the next one is gathered.
        (1, 64, 32, Bounds(32, 32, 64, 96)),
        # Whatever a worker says of itself, there is a limit, and it lets calls through.
        (0, 64, 0, Bounds(8, 8, 10, 256)),
        (-1, -5, 0, Bounds(8, 8, 10, 256)),
        (4, -1, 0, Bounds(8, 8, 10, 256)),
    ],
)
def test_the_bounds_come_from_what_was_announced(slots: int, queue: int, batch: int, bounds: Bounds) -> None:
    assert bounds_of(slots, queue, batch) == bounds


def test_an_upstream_begins_high_and_may_become_low() -> None:
    bounds = bounds_of(256, 64, is_remote=True)
    assert bounds == Bounds(8, 256, 10, 320)
    assert fresh(bounds).calls == 320
    # While nobody was refused, every slot that was announced is there for everybody.
    assert fresh(bounds).allowed(BATCH) == 256 + math.ceil(0.7 * 64)


def test_what_may_wait_is_given_less_of_the_queue_and_never_less_than_the_slots() -> None:
    limit = fresh(FOUR)
    assert [limit.allowed(kind) for kind in Criticality] == [68, 62, 49]
    lowest = concurrency.fresh(Bounds(4, 4, 4, 4))
    assert [lowest.allowed(kind) for kind in Criticality] == [4, 4, 4]


# --- learning ---------------------------------------------------------------------------------------


def learned(room: Room, *, took_s: float = 0.1, calls: int = 5) -> float:
    """Calls that found a slot free; the time after them."""
    now_s = 0.0
    for _ in range(calls):
        place = room.enter(Caller(), now_s)
        now_s += took_s
        room.answered(place, now_s, 1.0, is_whole=True)
        room.leave(place, now_s)
    return now_s


def sized(bounds: Bounds = FOUR) -> Room:
    room = Room()
    room.size(bounds)
    return room


def crowd(room: Room, calls: int, now_s: float, caller: Caller | None = None) -> list[Place]:
    """As many of them as are let in."""
    who = caller or Caller()
    return [room.enter(who, now_s) for _ in range(calls) if room.has_place(who, now_s)]


def test_a_queue_that_is_only_long_is_left_alone() -> None:
    room = sized()
    now_s = learned(room)
    for _ in range(20):
        places = crowd(room, 40, now_s)
        assert len(places) == 40
        for number, place in enumerate(places):
            room.answered(place, now_s + 0.1 * (number // 4 + 1), 1.0, is_whole=True)
            room.leave(place, now_s)
        now_s += 1.0
    assert room.limit.calls == 68


def test_a_queue_that_is_full_becomes_as_short_as_answers_in_time_allow() -> None:
    room = sized()
    now_s = learned(room)
    places = crowd(room, 100, now_s)
    assert len(places) == 62, "the last places are not for interactive calls"
    for number, place in enumerate(places[:20]):
        room.answered(place, now_s + 0.1 * (number // 4 + 1), 1.0, is_whole=True)
    # Four at a time in 0.1 s: in one and a half times that, six; the first answers had waited for less.
    assert 6 <= room.limit.calls <= 9
    assert not room.has_place(Caller(), now_s + 0.5)


def test_an_overload_is_forgotten_once_nobody_was_refused_for_a_while() -> None:
    room = sized()
    now_s = learned(room)
    places = crowd(room, 100, now_s)
    for number, place in enumerate(places):
        room.answered(place, now_s + 0.1 * (number // 4 + 1), 1.0, is_whole=True)
        room.leave(place, now_s)
    assert room.limit.calls < 10
    assert len(crowd(room, 100, now_s + 0.3)) < 10
    assert len(crowd(room, 100, now_s + 3.0)) > 50


def test_bursts_with_pauses_between_them_are_no_overload_even_if_each_is_too_large() -> None:
    room = sized(bounds_of(2, 6))
    now_s = learned(room, took_s=0.05)
    for _ in range(20):
        places = crowd(room, 20, now_s)
        assert len(places) == 8, "as many as slots and queue hold, again and again"
        for number, place in enumerate(places):
            at_s = now_s + 0.05 * (number // 2 + 1)
            room.answered(place, at_s, 1.0, is_whole=True)
            room.leave(place, at_s)
        assert room.limit.calls < 8
        now_s += 0.2 + 0.3


def test_samples_of_an_earlier_limit_do_not_lower_a_later_one() -> None:
    limit = concurrency.filled(fresh(FOUR), 1.0)
    for _ in range(5):
        limit = concurrency.sampled(limit, Sample(0.0, 0, 0, 0.1, 1.0, is_whole=True), 1.0)
    for _ in range(concurrency._LEAST_SAMPLES):
        limit = concurrency.sampled(limit, Sample(1.0, 39, 39, 1.0, 1.0, is_whole=True), 1.2)
    lowered = limit.calls
    assert lowered == pytest.approx(6.0)
    for _ in range(50):
        limit = concurrency.sampled(limit, Sample(1.1, 39, 39, 5.0, 1.0, is_whole=True), 1.3)
    assert limit.calls == lowered


def test_the_limit_grows_by_one_a_round_while_answers_are_in_time_and_it_is_used() -> None:
    hot = concurrency.Limit(FOUR, 8.0, hot_until_s=math.inf)
    for _ in range(5):
        hot = concurrency.sampled(hot, Sample(0.0, 0, 0, 0.1, 1.0, is_whole=True), 1.0)
    used = hot
    for _ in range(8):
        used = concurrency.sampled(used, Sample(1.0, 7, 7, 0.14, 1.0, is_whole=True), 2.0)
    assert used.calls == pytest.approx(9.0, abs=0.1)
    idle = hot
    for _ in range(8):
        idle = concurrency.sampled(idle, Sample(1.0, 4, 4, 0.14, 1.0, is_whole=True), 2.0)
    assert idle.calls == 8.0


def test_a_refusal_of_the_worker_lowers_the_limit_once_for_all_calls_that_were_there() -> None:
    room = sized()
    places = crowd(room, 40, 0.0)
    for place in places[30:]:
        room.refused(place, 1.0)
    assert room.limit.calls == pytest.approx(0.9 * 30)
    for _ in range(30):
        room.refused(room.enter(Caller(), 1.5), 1.5)
    assert room.limit.calls >= FOUR.floor


def test_silence_counts_as_overload_only_where_every_slot_was_taken() -> None:
    room = sized()
    alone = room.enter(Caller(), 0.0)
    room.stalled(alone, 60.0)
    assert room.limit.calls == 68
    places = crowd(room, 20, 60.0)
    room.stalled(places[-1], 120.0)
    assert room.limit.calls == pytest.approx(0.8 * 20)


def test_small_calls_which_are_mostly_overhead_do_not_look_like_waiting() -> None:
    limit = concurrency.filled(fresh(FOUR), 0.0)
    for units in (1.0, 1000.0) * 20:
        limit = concurrency.sampled(limit, Sample(0.0, 0, 0, 0.05 + units / 1000, units, is_whole=True), 0.5)
    for units in (1.0, 1000.0) * 20:
        took_s = 1.3 * (0.05 + units / 1000)
        limit = concurrency.sampled(limit, Sample(0.0, 10, 10, took_s, units, is_whole=True), 0.6)
    assert limit.calls >= 68


def test_a_new_announcement_keeps_what_was_learned_of_the_pace() -> None:
    room = sized()
    learned(room)
    room.size(bounds_of(8, 8))
    assert (room.limit.calls, room.limit.whole.took_s) == (16.0, pytest.approx(0.1))
    lowered = crowd(room, 12, 1.0)[-1]
    room.refused(lowered, 2.0)
    before = room.limit
    room.size(bounds_of(8, 8))
    assert room.limit is before, "the same announcement again changes nothing"


# --- who -----------------------------------------------------------------------------------------------


def test_less_critical_calls_take_no_place_of_more_critical_ones() -> None:
    room = sized(bounds_of(2, 10))
    batch, urgent = Caller(BATCH, "a"), Caller(REALTIME, "a")
    assert len(crowd(room, 50, 0.0, batch)) == 2 + 7
    assert not room.has_place(batch, 0.0)
    assert room.has_place(Caller(tenant="a"), 0.0)
    assert len(crowd(room, 50, 0.0, Caller(tenant="a"))) == 3, (
        "the worker's queue is bounded for all together"
    )
    assert not room.has_place(urgent, 0.0)


def test_a_tenant_with_less_than_its_share_is_let_in_where_another_fills_the_limit() -> None:
    room = sized()
    now_s = learned(room)
    noisy, victim = Caller(tenant="noisy"), Caller(tenant="victim")
    places = crowd(room, 100, now_s, noisy)
    for number, place in enumerate(places[:20]):
        room.answered(place, now_s + 0.1 * (number // 4 + 1), 1.0, is_whole=True)
        room.leave(place, now_s)
    now_s += 0.5
    assert not room.has_place(noisy, now_s)
    let_in = crowd(room, 100, now_s, victim)
    assert len(let_in) == room.limit.allowed(INTERACTIVE) // 2
    assert not room.has_place(noisy, now_s)


@pytest.mark.parametrize("seed", range(40))
def test_while_a_slot_is_idle_nobody_is_refused_whatever_happened_before(seed: int) -> None:
    random = Random(seed)
    slots = random.choice([1, 2, 4, 30])
    bounds = bounds_of(slots, random.choice([0, 1, 5, 64]), random.choice([0, 8]), is_remote=seed % 5 == 0)
    room = sized(bounds)
    there: list[Place] = []
    now_s = 0.0
    for _ in range(3000):
        now_s += random.expovariate(50)
        caller = Caller(random.choice(list(Criticality)), random.choice("abc"))
        has_place = room.has_place(caller, now_s)
        if room.total < bounds.sure:
            assert has_place, (room.limit, room.total)
        assert bounds.floor <= room.limit.calls <= bounds.ceiling
        if has_place or random.random() < 0.1:
            there.append(room.enter(caller, now_s))
        while there and random.random() < 0.5:
            place = there.pop(random.randrange(len(there)))
            match random.randrange(5):
                case 0:
                    room.refused(place, now_s)
                case 1:
                    room.stalled(place, now_s)
                case 2:
                    pass
                case _:
                    room.answered(place, now_s, random.choice([0.1, 1, 500]), is_whole=random.random() < 0.5)
            room.leave(place, now_s)
    for place in there:
        room.leave(place, now_s)
    assert room.total == 0
    assert all(room.has_place(Caller(kind, "z"), now_s) for kind in Criticality)


# --- an overload, in virtual time ---------------------------------------------------------------------


@dataclass
class Model:
    """A worker with a bounded queue, first in first out, and gateways that go by their rooms."""

    gateways: int = 1
    slots: int = 4
    queue: int = 64
    service_s: float = 0.05
    random: Random = field(default_factory=lambda: Random(7))

    def __post_init__(self) -> None:
        self.rooms = [sized(bounds_of(self.slots, self.queue)) for _ in range(self.gateways)]
        self.told = [0] * self.gateways
        """To each, the others' calls, of a report that is up to a second old."""

    def run(self, rate: float, for_s: float, begin_s: float = 0.0) -> Outcome:
        """Calls that come by themselves, `rate` a second, until all that was admitted is answered."""
        events: list[tuple[float, int, str, object]] = []
        numbers = count()
        found = Outcome(for_s)
        at_s = begin_s
        while (at_s := at_s + self.random.expovariate(rate)) < begin_s + for_s:
            heapq.heappush(events, (at_s, next(numbers), "comes", self.random.choice(self.rooms)))
        for second in range(int(for_s)):
            heapq.heappush(events, (begin_s + second, next(numbers), "tells", None))
        waiting: deque[tuple[Room, Place]] = deque()
        running = 0

        def start(room: Room, place: Place, now_s: float) -> None:
            end_s = now_s + self.service_s
            heapq.heappush(events, (end_s, next(numbers), "ends", (room, place)))

        while events:
            now_s, _, kind, what = heapq.heappop(events)
            if kind == "tells":
                self.told = [running + len(waiting) - room.total for room in self.rooms]
            elif kind == "comes":
                assert isinstance(what, Room)
                if not what.has_place(Caller(), now_s):
                    found.refused += 1
                    continue
                place = what.enter(Caller(), now_s, self.told[self.rooms.index(what)])
                if running < self.slots:
                    running += 1
                    start(what, place, now_s)
                elif len(waiting) < self.queue:
                    waiting.append((what, place))
                    found.longest = max(found.longest, len(waiting))
                else:
                    found.refused_late += 1
                    what.refused(place, now_s)
                    what.leave(place, now_s)
            else:
                room, place = what  # type: ignore[misc]
                found.answered.append((place.began_s - begin_s, now_s - place.began_s))
                room.answered(place, now_s, 1.0, is_whole=True)
                room.leave(place, now_s)
                if waiting:
                    start(*waiting.popleft(), now_s)
                else:
                    running -= 1
        found.end_s = now_s
        return found


@dataclass
class Outcome:
    for_s: float
    answered: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    refused_late: int = 0
    longest: int = 0
    end_s: float = 0.0

    def goodput(self, after_s: float = 0.0) -> float:
        return sum(at_s >= after_s for at_s, _ in self.answered) / (self.for_s - after_s)

    def p99_s(self, after_s: float = 0.0) -> float:
        took = sorted(s for at_s, s in self.answered if at_s >= after_s)
        return took[int(0.99 * len(took))]


@pytest.mark.parametrize("slots", [1, 2, 4, 16])
@pytest.mark.parametrize("factor", [2.0, 3.0, 10.0])
def test_in_an_overload_the_work_done_stays_and_what_is_admitted_is_soon_answered(
    slots: int, factor: float
) -> None:
    model = Model(slots=slots)
    capacity = slots / model.service_s
    peak = model.run(0.9 * capacity, 60.0)
    assert not peak.refused
    over = model.run(factor * capacity, 60.0, begin_s=peak.end_s)
    assert over.goodput(after_s=SETTLED_S) >= 0.9 * capacity
    assert over.p99_s(after_s=SETTLED_S) <= 2 * peak.p99_s()
    assert over.refused_late == 0, "what is refused never reached the worker"
    # After it, at once as before.
    after = model.run(0.5 * capacity, 20.0, begin_s=over.end_s)
    # While it is remembered, bursts find a short queue.
    assert after.refused <= 0.05 * len(after.answered)
    assert model.run(0.5 * capacity, 20.0, begin_s=after.end_s + 1.0).refused == 0
    assert after.goodput() >= 0.45 * capacity


def test_several_gateways_share_a_worker_that_teaches_them() -> None:
    model = Model(gateways=4)
    capacity = model.slots / model.service_s
    calm = model.run(0.5 * capacity, 20.0)
    over = model.run(3 * capacity, 60.0, begin_s=calm.end_s)
    assert over.goodput(after_s=SETTLED_S) >= 0.9 * capacity
    assert over.refused_late <= 0.01 * over.refused
    # Each of them keeps the slots busy by itself, so four of them wait longer than one, and not as long as
    # the whole queue, which would be 0.85 s.
    assert over.p99_s(after_s=SETTLED_S) <= 0.45
    assert model.run(0.5 * capacity, 20.0, begin_s=over.end_s + 1.0).refused == 0


def test_clients_that_wait_for_their_answers_are_never_refused_below_the_queue() -> None:
    """Forty clients at four slots are no overload: none of them asks again before it was answered."""
    room = sized()
    now_s = 0.0
    waiting: deque[Place] = deque()
    for _ in range(2000):
        while room.total < 40:
            assert room.has_place(Caller(), now_s)
            waiting.append(room.enter(Caller(), now_s))
        now_s += 0.05
        for _ in range(4):
            place = waiting.popleft()
            room.answered(place, now_s, 1.0, is_whole=True)
            room.leave(place, now_s)
