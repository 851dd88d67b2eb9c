"""Who leaves memory for another model: the least recently used of those that nobody needs, and no more."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inferhub.worker.eviction import Resident, leavers


def guest(name: str, memory_bytes: int, last_used_s: float, *, busy: bool = False) -> Resident:
    return Resident(name, memory_bytes, last_used_s, can_leave=not busy)


def test_nobody_leaves_while_there_is_room() -> None:
    assert leavers([guest("a", 40, 1), guest("b", 40, 2)], 20, 100) == ()


def test_the_least_recently_used_leaves_first() -> None:
    residents = [guest("new", 40, 3), guest("old", 40, 1), guest("middle", 20, 2)]
    assert leavers(residents, 10, 100) == ("old",)
    assert leavers(residents, 50, 100) == ("old", "middle")


def test_busy_models_stay_and_count() -> None:
    residents = [guest("busy", 60, 1, busy=True), guest("idle", 30, 2)]
    assert leavers(residents, 40, 100) == ("idle",)
    assert leavers(residents, 41, 100) is None


def test_a_model_without_memory_is_not_sent_away_for_nothing() -> None:
    assert leavers([guest("empty", 0, 1), guest("full", 50, 2)], 80, 100) == ("full",)


residents_lists = st.lists(st.tuples(st.integers(0, 100), st.floats(0, 10), st.booleans()), max_size=8).map(
    lambda rows: [Resident(str(i), *row) for i, row in enumerate(rows)]
)


@given(residents_lists, st.integers(0, 300), st.integers(0, 300))
def test_what_leaves_is_enough_and_nothing_of_it_is_too_much(
    residents: list[Resident], needed: int, budget: int
) -> None:
    by_name = {resident.name: resident for resident in residents}
    chosen = leavers(residents, needed, budget)
    total = sum(r.memory_bytes for r in residents) + needed
    if chosen is None:
        assert total - sum(r.memory_bytes for r in residents if r.can_leave) > budget
        return
    freed = [by_name[name].memory_bytes for name in chosen]
    assert all(by_name[name].can_leave for name in chosen)
    assert total - sum(freed) <= budget
    assert not freed or total - sum(freed[:-1]) > budget
