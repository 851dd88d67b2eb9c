"""Who leaves memory, for room or for being idle: never one that is needed, no more than it takes, and no two
rules that undo each other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.serving import DeviceStatus
from inferhub.worker.lifecycle.evict import (
    Budget,
    Resident,
    evict,
    idle,
    next_idle_s,
    too_large_for,
    total,
)

GPU = "cuda:0"


def resident(name: str, cpu: int, last_used_s: float, *, gpu: int = 0, **more: object) -> Resident:
    return Resident(name, {"cpu": cpu, GPU: gpu}, last_used_s, **more)  # type: ignore[arg-type]


def test_nobody_leaves_while_there_is_room() -> None:
    assert evict([resident("a", 40, 1), resident("b", 40, 2)], {"cpu": 20}, {"cpu": 100}) == ()


def test_the_least_recently_used_leaves_first() -> None:
    there = [resident("new", 40, 3), resident("old", 40, 1), resident("middle", 20, 2)]
    assert evict(there, {"cpu": 10}, {"cpu": 100}) == ("old",)
    assert evict(there, {"cpu": 50}, {"cpu": 100}) == ("old", "middle")


@pytest.mark.parametrize("why", [{"users": 1}, {"is_pinned": True}, {"is_loaded": False}])
def test_who_is_needed_stays_and_counts(why: Mapping[str, object]) -> None:
    there = [resident("needed", 60, 1, **why), resident("idle", 30, 2)]
    assert evict(there, {"cpu": 40}, {"cpu": 100}) == ("idle",)
    assert evict(there, {"cpu": 41}, {"cpu": 100}) is None


def test_a_model_without_memory_is_not_sent_away_for_nothing() -> None:
    assert evict([resident("empty", 0, 1), resident("full", 50, 2)], {"cpu": 80}, {"cpu": 100}) == ("full",)


def test_small_ones_stay_where_a_large_one_has_to_go_anyway() -> None:
    there = [resident("small", 10, 1), resident("large", 80, 2)]
    assert evict(there, {"cpu": 60}, {"cpu": 100}) == ("large",)


def test_each_device_has_a_budget_of_its_own() -> None:
    there = [resident("cpu", 60, 1), resident("gpu", 5, 2, gpu=60), resident("other", 5, 3, gpu=20)]
    budgets = {"cpu": 100, GPU: 80}
    assert evict(there, {"cpu": 5, GPU: 40}, budgets) == ("gpu",)
    assert evict(there, {"cpu": 40}, budgets) == ("cpu",)
    assert evict(there, {"cpu": 40, GPU: 40}, budgets) == ("cpu", "gpu")
    assert evict(there, {"cuda:7": 10**9}, budgets) == (), "a device without a budget has no limit"


def test_a_gpu_that_is_over_full_is_no_reason_to_refuse_a_model_without_it() -> None:
    there = [resident("gpu", 5, 1, gpu=90, is_pinned=True)]
    assert evict(there, {"cpu": 40}, {"cpu": 100, GPU: 80}) == ()
    assert evict(there, {}, {"cpu": 100, GPU: 80}) is None, "but to be told of"


def test_what_does_not_even_fit_beside_the_pinned_is_told_from_what_has_to_wait() -> None:
    budgets = {"cpu": 100, GPU: 80}
    there = [resident("pinned", 50, 1, is_pinned=True), resident("busy", 50, 2, users=1)]
    assert too_large_for(there, {"cpu": 50}, budgets) is None
    assert too_large_for(there, {"cpu": 51}, budgets) == "cpu"
    assert too_large_for(there, {"cpu": 1, GPU: 81}, budgets) == GPU


def test_a_gpus_budget_is_a_share_of_it_and_never_what_others_have_taken() -> None:
    """Figures as NVML tells them; no GPU takes part in this test."""
    there = [resident("ours", 1, 1, gpu=30)]
    alone = DeviceStatus(GPU, "A GPU", 100, 70)
    shared = DeviceStatus(GPU, "A GPU", 100, 20)
    cpu = DeviceStatus("cpu", "A CPU", 1000, 10)
    assert Budget(500, 0.9).on([cpu, alone], there) == {"cpu": 500, GPU: 90}
    assert Budget(500, 0.9).on([cpu, shared], there) == {"cpu": 500, GPU: 50}


def test_idle_ones_leave_when_their_time_is_over() -> None:
    there = [
        resident("a", 1, 10, idle_ttl_s=5),
        resident("b", 1, 12, idle_ttl_s=5),
        resident("busy", 1, 0, idle_ttl_s=5, users=1),
        resident("pinned", 1, 0, idle_ttl_s=5, is_pinned=True),
        resident("for ever", 1, 0),
    ]
    assert idle(there, 14.9) == ()
    assert idle(there, 15) == ("a",)
    assert idle(there, 100) == ("a", "b")
    assert next_idle_s(there[:2]) == 15
    assert next_idle_s(there[3:]) is None


devices = st.sampled_from(["cpu", GPU])
sizes = st.dictionaries(devices, st.integers(0, 100))
residents_lists = st.lists(
    st.builds(
        Resident,
        name=st.just(""),
        memory=sizes,
        last_used_s=st.floats(0, 10),
        is_loaded=st.booleans(),
        is_pinned=st.booleans(),
        users=st.integers(0, 2),
        idle_ttl_s=st.none() | st.floats(0, 10),
    ),
    max_size=8,
).map(lambda rows: [Resident(str(i), *_fields(row)) for i, row in enumerate(rows)])


def _fields(row: Resident) -> tuple[object, ...]:
    return (row.memory, row.last_used_s, row.is_loaded, row.is_pinned, row.users, row.idle_ttl_s)


def over(residents: list[Resident], needed: Mapping[str, int], budgets: Mapping[str, int]) -> bool:
    return any(
        total(residents, device) + needed.get(device, 0) > budget
        for device, budget in budgets.items()
        if not needed or needed.get(device)
    )


def without(residents: list[Resident], names: tuple[str, ...]) -> list[Resident]:
    return [r for r in residents if r.name not in names]


@given(residents_lists, sizes, sizes)
def test_what_leaves_is_enough_and_nothing_of_it_is_too_much(
    residents: list[Resident], needed: dict[str, int], budgets: dict[str, int]
) -> None:
    by_name = {r.name: r for r in residents}
    chosen = evict(residents, needed, budgets)
    if chosen is None:
        assert over([r for r in residents if not r.can_leave], needed, budgets)
        return
    for name in chosen:
        r = by_name[name]
        assert r.is_loaded
        assert not r.is_pinned
        assert not r.users
        assert over(without(residents, tuple(n for n in chosen if n != name)), needed, budgets), (
            "one too many"
        )
    assert not over(without(residents, chosen), needed, budgets)


@given(st.lists(st.floats(0, 10), unique=True, max_size=8), st.integers(0, 10))
def test_of_equal_models_the_oldest_leave(used_s: list[float], needed: int) -> None:
    residents = [resident(str(at), 1, at) for at in used_s]
    chosen = evict(residents, {"cpu": needed}, {"cpu": len(used_s)})
    if chosen is not None:
        assert chosen == tuple(str(at) for at in sorted(used_s)[:needed])


@given(residents_lists, sizes, sizes, st.floats(0, 30))
def test_the_two_rules_never_undo_each_other(
    residents: list[Resident], needed: dict[str, int], budgets: dict[str, int], now_s: float
) -> None:
    left = idle(residents, now_s)
    after = without(residents, left)
    assert idle(after, now_s) == ()
    chosen, before = evict(after, needed, budgets), evict(residents, needed, budgets)
    assert (chosen is None) == (before is None), "who is idle could have left for room as well"
    if chosen is not None:
        assert before is not None
        # Who asks again at once is not asked to send anybody else away.
        assert evict(without(after, chosen), needed, budgets) == ()
        if not over(after, needed, budgets):
            assert chosen == ()
