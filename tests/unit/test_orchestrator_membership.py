"""Leases, suspicion, lives and lies: the members of a fleet as a pure state machine."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from inferhub.core.errors import Conflict, InferHubError, Invalid, Overloaded, UnknownWorker
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus, beat_of
from inferhub.orchestrator.membership import Change, Roll, Terms

NOW_MS = 1_800_000_000_000
MODEL = ModelStatus(ModelSpec("echo#1", "echo"), (Capability("chat"),), "cpu")
WORKER = WorkerStatus(
    "w1",
    (MODEL,),
    (DeviceStatus("cpu", "CPU", 100, 50),),
    address="10.0.0.1:50051",
    incarnation=NOW_MS,
    seq=1,
    at_s=10.0,
    labels={"gpu": "h100"},
    version="0.1.0",
)
TERMS = Terms(heartbeat_s=1.0, lease_s=5.0)


def worker(n: int, **changes: object) -> WorkerStatus:
    return replace(WORKER, id=f"w{n}", address=f"10.0.0.{n}:50051", **changes)


def later(status: WorkerStatus, seq: int, **changes: object) -> WorkerStatus:
    return replace(status, seq=seq, at_s=10.0 + seq, **changes)  # type: ignore[arg-type]


def roll_of(*workers: WorkerStatus, terms: Terms = TERMS) -> Roll:
    """Past its first lease, in which nobody is lost."""
    roll = Roll(terms, -100.0)
    roll.tick(0.0)
    for status in workers:
        roll.register(status, 0.0, NOW_MS)
    return roll


def kinds(changes: Sequence[Change]) -> list[tuple[str, str]]:
    return [(change.what, change.who) for change in changes]


def pass_time(roll: Roll, until_s: float, since_s: float = 0.0) -> list[tuple[str, str]]:
    """As the service ticks: four times a heartbeat."""
    steps = round((until_s - since_s) * 4)
    return [kind for n in range(1, steps + 1) for kind in kinds(roll.tick(since_s + n / 4))]


def test_a_worker_is_suspect_after_two_missed_beats_and_out_after_its_lease() -> None:
    roll = roll_of(WORKER)
    assert pass_time(roll, 2.5) == []
    assert pass_time(roll, 5.0, 2.5) == [("suspect", "w1")]
    assert [m.is_suspect for m in roll.members()] == [True]
    assert pass_time(roll, 6.0, 5.0) == [("lost", "w1")]
    assert roll.members() == ()
    with pytest.raises(UnknownWorker):
        roll.heartbeat(beat_of(later(WORKER, 2)), 6.0)
    assert kinds(roll.register(later(WORKER, 3), 6.0, NOW_MS)) == [("here", "w1")]


def test_any_beat_restores_a_suspect_and_brings_the_figures_up_to_date() -> None:
    roll = roll_of(WORKER)
    pass_time(roll, 4.0)
    busy = later(WORKER, 2, models=(replace(MODEL, running=3, pending_cost=7.5),), draining=True)
    assert kinds(roll.heartbeat(beat_of(busy), 4.0)) == [("restored", "w1")]
    assert roll.members()[0].worker == busy
    assert pass_time(roll, 6.5, 4.0) == []


def test_who_leaves_is_gone_at_once_and_does_not_come_back_by_a_late_report() -> None:
    roll = roll_of(WORKER)
    assert roll.leave("w1", WORKER.incarnation - 1, 1.0) == []
    assert kinds(roll.leave("w1", WORKER.incarnation, 1.0)) == [("left", "w1")]
    with pytest.raises(UnknownWorker):
        roll.heartbeat(beat_of(later(WORKER, 2)), 1.1)
    with pytest.raises(Conflict, match="is over"):
        roll.register(later(WORKER, 3), 1.2, NOW_MS)
    assert kinds(roll.register(replace(WORKER, incarnation=NOW_MS + 5), 1.3, NOW_MS)) == [("here", "w1")]
    assert roll.leave("nobody", 1, 1.4) == []


def test_a_later_life_replaces_an_earlier_one_at_once() -> None:
    roll = roll_of(WORKER)
    again = replace(WORKER, incarnation=NOW_MS + 1, at_s=0.0)
    assert kinds(roll.register(again, 0.5, NOW_MS)) == [("restarted", "w1")]
    assert [m.worker for m in roll.members()] == [again]
    with pytest.raises(Conflict, match="is over"):
        roll.register(later(WORKER, 9), 0.6, NOW_MS)
    assert roll.learn(later(WORKER, 9), 0.1, 0.6, NOW_MS) == []
    with pytest.raises(Conflict, match="is over"):
        roll.heartbeat(beat_of(later(WORKER, 9)), 0.6)
    assert [m.worker for m in roll.members()] == [again]


def test_an_id_belongs_to_who_has_it_until_that_one_is_suspect() -> None:
    roll = roll_of(WORKER)
    twin = replace(WORKER, address="10.0.0.9:50051", incarnation=NOW_MS + 1)
    with pytest.raises(Conflict, match="belongs to a living worker"):
        roll.register(twin, 1.0, NOW_MS)
    pass_time(roll, 3.0)
    assert kinds(roll.register(twin, 3.0, NOW_MS)) == [("left", "w1"), ("restarted", "w1")]
    assert [m.worker.address for m in roll.members()] == ["10.0.0.9:50051"]


def test_an_address_belongs_to_who_has_it_until_that_one_is_suspect() -> None:
    roll = roll_of(WORKER)
    other = replace(WORKER, id="other")
    with pytest.raises(Conflict, match="already at"):
        roll.register(other, 1.0, NOW_MS)
    pass_time(roll, 3.0)
    assert kinds(roll.register(other, 3.0, NOW_MS)) == [("left", "w1"), ("here", "other")]
    assert [m.worker.id for m in roll.members()] == ["other"]


def test_a_replayed_report_neither_counts_nor_renews_the_lease() -> None:
    roll = roll_of(WORKER)
    beat = beat_of(later(WORKER, 2))
    roll.heartbeat(beat, 1.0)
    for _ in range(3):
        with pytest.raises(Conflict, match="replay"):
            roll.heartbeat(beat, 2.0)
    with pytest.raises(Conflict, match="replay"):
        roll.register(WORKER, 2.0, NOW_MS)
    # The answer to a registration may be lost; the same one again is fine, and is no sign of life.
    assert roll.register(later(WORKER, 2), 3.0, NOW_MS) == []
    assert ("lost", "w1") in pass_time(roll, 6.5)


def test_a_beat_of_other_models_or_of_another_life_has_to_register() -> None:
    roll = roll_of(WORKER)
    more = later(WORKER, 2, models=(MODEL, replace(MODEL, spec=ModelSpec("more#1", "echo"))))
    renamed = later(WORKER, 2, models=(replace(MODEL, spec=ModelSpec("other#1", "echo")),))
    for status in (more, renamed, later(WORKER, 2, models=()), later(WORKER, 2, incarnation=NOW_MS + 1)):
        with pytest.raises(UnknownWorker):
            roll.heartbeat(beat_of(status), 1.0)
    assert kinds(roll.register(more, 1.0, NOW_MS)) == []
    assert len(roll.members()[0].worker.models) == 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "figures",
    [
        {"running": -1},
        {"queued": -1},
        {"queued": 1 << 40},
        {"memory_bytes": -1},
        {"memory_bytes": 1 << 60},
        {"pending_cost": -0.5},
        {"pending_cost": NAN},
        {"pending_cost": INF},
        {"s_per_cost": -1.0},
        {"s_per_cost": NAN},
        {"s_per_cost": 1e9},
        {"prefixes": (1,) * 5000},
        {"spec": ModelSpec("echo#1", "echo", slots=-1)},
        {"spec": ModelSpec("echo#1", "echo", queue_limit=-1)},
        {"spec": ModelSpec("echo\n#1", "echo")},
        {"spec": ModelSpec("", "echo")},
    ],
)
def test_figures_that_cannot_be_true_are_refused_and_change_nothing(figures: dict[str, object]) -> None:
    lie = replace(MODEL, **figures)  # type: ignore[arg-type]
    roll = roll_of(WORKER)
    before = roll.members()
    with pytest.raises(Invalid):
        roll.register(later(WORKER, 2, models=(lie,)), 1.0, NOW_MS)
    with pytest.raises(Invalid):
        roll.register(worker(2, models=(lie,)), 1.0, NOW_MS)
    with pytest.raises(Invalid):
        roll.answered("local", WorkerStatus("p", (lie,)), 1.0)
    if "spec" not in figures:
        with pytest.raises(Invalid):
            roll.heartbeat(beat_of(later(WORKER, 2, models=(lie,))), 1.0)
    assert roll.members() == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": ""}, "invalid_id"),
        ({"id": "a b"}, "invalid_id"),
        ({"id": "w\nforged"}, "invalid_id"),
        ({"id": "w" * 64}, "invalid_id"),
        ({"address": ""}, "invalid_address"),
        ({"address": "nowhere"}, "invalid_address"),
        ({"address": "host:0"}, "invalid_address"),
        ({"address": "host:70000"}, "invalid_address"),
        ({"address": "host:\u0661"}, "invalid_address"),
        ({"address": "ho st:1"}, "invalid_address"),
        ({"address": "unix:"}, "invalid_address"),
        ({"version": "1 2"}, "invalid_version"),
        ({"labels": {"a b": "c"}}, "invalid_labels"),
        ({"labels": {"a": "c\n"}}, "invalid_labels"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "invalid_labels"),
        ({"incarnation": 0}, "invalid_incarnation"),
        ({"incarnation": -5}, "invalid_incarnation"),
        ({"incarnation": NOW_MS + 301_000}, "clock_ahead"),
        ({"seq": -1}, "invalid_seq"),
        ({"at_s": NAN}, "invalid_at_s"),
        ({"at_s": -1.0}, "invalid_at_s"),
        ({"models": (MODEL, MODEL)}, "invalid_models"),
        (
            {"models": tuple(replace(MODEL, spec=ModelSpec(f"m{n}", "echo")) for n in range(257))},
            "invalid_models",
        ),
        ({"devices": (DeviceStatus("cpu", "CPU", -1, 0),)}, "invalid_memory"),
        ({"devices": (DeviceStatus("cpu", "CPU", 1, -1),)}, "invalid_memory"),
    ],
)
def test_a_record_that_cannot_be_true_is_refused_with_its_reason(
    changes: dict[str, object], code: str
) -> None:
    roll = roll_of(worker(7))
    with pytest.raises(Invalid) as refused:
        roll.register(replace(WORKER, **changes), 0.0, NOW_MS)  # type: ignore[arg-type]
    assert refused.value.wire_code == code
    assert len(refused.value.message) < 300
    assert [m.worker.id for m in roll.members()] == ["w7"]


@pytest.mark.parametrize(
    "address", ["host:1", "10.0.0.1:65535", "[::1]:50051", "a.b-c.example:50051", "unix:/run/w.sock"]
)
def test_addresses_that_can_be_reached(address: str) -> None:
    roll = roll_of(replace(WORKER, address=address))
    assert roll.get(address) is not None


def test_a_clock_that_goes_back_is_refused() -> None:
    roll = roll_of(later(WORKER, 5))
    with pytest.raises(Invalid, match="went back") as refused:
        roll.heartbeat(beat_of(replace(WORKER, seq=6, at_s=3.0)), 1.0)
    assert refused.value.wire_code == "clock_back"
    with pytest.raises(Invalid, match="went back"):
        roll.register(replace(WORKER, seq=6, at_s=3.0), 1.0, NOW_MS)


def test_the_fleet_has_a_limit() -> None:
    roll = roll_of(worker(1), worker(2), terms=replace(TERMS, max_members=2))
    with pytest.raises(Overloaded, match="takes no more"):
        roll.register(worker(3), 0.0, NOW_MS)
    roll.register(later(worker(1), 2), 0.0, NOW_MS)


# --- the brake ----------------------------------------------------------------------------------


def beat_all(roll: Roll, numbers: Sequence[int], seq: int, now_s: float) -> None:
    for n in numbers:
        roll.heartbeat(beat_of(later(worker(n), seq)), now_s)


def live(roll: Roll, numbers: Sequence[int], since_s: int, until_s: int) -> list[tuple[str, str]]:
    """These beat once a second, the others are silent."""
    changes = []
    for second in range(since_s, until_s):
        beat_all(roll, numbers, 100 + second, second)
        changes += pass_time(roll, second + 1, second)
    return changes


def lost(changes: list[tuple[str, str]]) -> int:
    return sum(what == "lost" for what, _ in changes)


def test_a_third_of_the_fleet_may_be_lost_at_once() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    assert lost(live(roll, range(4, 10), 0, 7)) == 3
    assert len(roll.members()) == 6
    assert not roll.is_braked


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_worker_may_always_be_lost(size: int) -> None:
    roll = roll_of(*map(worker, range(1, size + 1)))
    assert lost(live(roll, range(2, size + 1), 0, 7)) == 1


def test_when_all_fall_silent_most_stay_as_suspects_until_they_are_heard_again() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    changes = live(roll, (), 0, 30)
    assert [what for what, _ in changes if what == "braked"] == ["braked"]
    assert lost(changes) == 3
    held = [int(m.worker.id[1:]) for m in roll.members()]
    assert len(held) == 6
    assert all(m.is_suspect for m in roll.members())
    assert roll.is_braked
    changes = live(roll, held, 30, 32)
    assert lost(changes) == 0
    assert not roll.is_braked
    assert not any(m.is_suspect for m in roll.members())


def test_what_stays_silent_beside_half_of_the_fleet_is_lost_after_all() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    changes = live(roll, range(5, 10), 0, 20)
    assert lost(changes) == 4
    assert sorted(m.worker.id for m in roll.members()) == ["w5", "w6", "w7", "w8", "w9"]
    assert not roll.is_braked


def test_the_brake_does_not_hold_for_ever() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    assert lost(live(roll, (9,), 0, 64)) == 3
    assert lost(live(roll, (9,), 64, 68)) == 5
    assert [m.worker.id for m in roll.members()] == ["w9"]


def test_after_the_brake_was_released_it_is_not_put_on_for_nobody() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    live(roll, (9,), 0, 64)
    changes = live(roll, (9,), 64, 80)
    assert [what for what, _ in changes if what in ("braked", "released")] == ["released"]
    assert not roll.is_braked


def test_while_the_orchestrator_itself_was_away_nobody_was_silent() -> None:
    roll = roll_of(*map(worker, range(1, 10)))
    beat_all(roll, range(1, 10), 2, 1.0)
    pass_time(roll, 2.0)
    # Stopped for a minute.
    assert roll.tick(62.0) == []
    beat_all(roll, range(1, 10), 62, 62.5)
    assert pass_time(roll, 64.5, 62.0) == []


def test_in_its_first_lease_an_orchestrator_loses_nobody() -> None:
    roll = Roll(TERMS, 0.0)
    roll.learn(WORKER, 4.5, 0.0, NOW_MS)
    assert pass_time(roll, 4.75) == [("suspect", "w1")]
    assert pass_time(roll, 6.0, 4.75) == [("lost", "w1")]


# --- polled and shared --------------------------------------------------------------------------


def test_one_that_is_asked_is_out_with_the_first_answer_that_does_not_come() -> None:
    roll = roll_of()
    status = WorkerStatus("any name at all", (MODEL,))
    assert kinds(roll.answered("local", status, 0.0)) == [("here", "any name at all")]
    assert roll.answered("local", status, 1.0) == []
    assert roll.members()[0].worker.address == "local"
    assert pass_time(roll, 30.0) == []
    assert kinds(roll.is_silent("local")) == [("lost", "any name at all")]
    assert roll.is_silent("local") == []
    assert roll.members() == ()


def test_who_registers_is_not_also_asked() -> None:
    roll = roll_of()
    roll.answered(WORKER.address, WORKER, 0.0)
    roll.register(WORKER, 0.0, NOW_MS)
    assert roll.answered(WORKER.address, replace(WORKER, models=()), 1.0) == []
    assert roll.is_silent(WORKER.address) == []
    assert [m.worker for m in roll.members()] == [WORKER]


def test_what_another_orchestrator_heard_counts_as_old_as_it_is() -> None:
    roll = roll_of()
    assert kinds(roll.learn(WORKER, 2.0, 0.0, NOW_MS)) == [("here", "w1")]
    assert roll.learn(WORKER, 0.0, 1.0, NOW_MS) == []
    assert roll.learn(worker(2), 8.0, 1.0, NOW_MS) == []
    # Seen later than a worker of its own, by an interval of writing and one of reading.
    assert pass_time(roll, 2.5) == []
    assert pass_time(roll, 5.0, 2.5) == [("suspect", "w1")]
    assert kinds(roll.heartbeat(beat_of(later(WORKER, 2)), 5.0)) == [("restored", "w1")]


def test_a_copy_of_an_old_sighting_does_not_bring_the_lost_back() -> None:
    roll = roll_of(WORKER)
    assert ("lost", "w1") in pass_time(roll, 5.5)
    assert roll.learn(WORKER, 5.5, 5.5, NOW_MS) == []
    assert roll.members() == ()
    assert kinds(roll.learn(later(WORKER, 2), 0.0, 5.6, NOW_MS)) == [("here", "w1")]


def test_while_the_store_is_away_what_others_hear_is_excused() -> None:
    roll = roll_of(worker(1))
    roll.learn(worker(2), 0.0, 0.0, NOW_MS)
    for second in range(20):
        beat_all(roll, [1], 100 + second, second)
        roll.excuse(1.0, second, "shared")
        pass_time(roll, second + 1, second)
    assert [(m.worker.id, m.is_suspect) for m in roll.members()] == [("w1", False), ("w2", False)]


# --- what was just done -------------------------------------------------------------------------


def test_a_report_from_before_a_load_does_not_hide_its_model() -> None:
    roll = roll_of(replace(WORKER, models=()))
    roll.loaded(WORKER.address, "echo#1", MODEL, 1.0)
    assert roll.members()[0].worker.models == (MODEL,)
    with pytest.raises(UnknownWorker):
        roll.heartbeat(beat_of(later(WORKER, 2, models=())), 1.1)
    roll.register(later(WORKER, 3, models=()), 1.2, NOW_MS)
    assert roll.members()[0].worker.models == (MODEL,)
    roll.heartbeat(beat_of(later(WORKER, 4)), 1.3)
    # Later the worker knows better.
    roll.register(later(WORKER, 5, models=()), 4.0, NOW_MS)
    assert roll.members()[0].worker.models == ()


def test_a_report_from_before_an_unload_does_not_bring_its_model_back() -> None:
    roll = roll_of()
    roll.answered("local", WORKER, 0.0)
    roll.loaded("local", "echo#1", None, 1.0)
    roll.answered("local", WORKER, 1.5)
    assert roll.members()[0].worker.models == ()
    roll.answered("local", WORKER, 3.5)
    assert roll.members()[0].worker.models == (MODEL,)


def disturb(roll: Roll, rng: random.Random, status: WorkerStatus, now_s: float) -> None:
    """One of all the things that can happen; what is refused is refused."""
    happening = rng.randrange(9)
    if happening == 0:
        roll.register(status, now_s, NOW_MS)
    elif happening == 1:
        roll.heartbeat(beat_of(status), now_s)
    elif happening == 2:
        roll.learn(status, rng.random() * 8, now_s, NOW_MS)
    elif happening == 3 and rng.random() < 0.1:
        roll.leave(status.id, status.incarnation, now_s)
    elif happening == 4:
        roll.answered(status.address, status, now_s)
    elif happening == 5:
        roll.is_silent(status.address)
    elif happening == 6:
        roll.loaded(status.address, "more#1", rng.choice((None, MODEL)), now_s)
    else:
        roll.tick(now_s)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_order_the_roll_stays_whole(seed: int) -> None:
    rng = random.Random(seed)
    roll = Roll(TERMS, 0.0)
    now_s = 0.0
    for _ in range(2000):
        now_s += rng.choice((0.0, 0.01, 0.3))
        status = replace(
            worker(rng.randrange(1, 6), seq=rng.randrange(200), at_s=now_s + rng.choice((1.0, 2.0, 3.0))),
            address=f"10.0.0.{rng.randrange(1, 6)}:50051",
            incarnation=NOW_MS + rng.randrange(3),
            models=rng.choice(((), (MODEL,), (replace(MODEL, running=-1),))),
        )
        with contextlib.suppress(InferHubError):
            disturb(roll, rng, status, now_s)
        entries = roll.entries()
        leased = {e.worker.id: address for address, e in entries.items() if e.source != "polled"}
        assert all(address == entry.worker.address for address, entry in entries.items())
        assert len(leased) == sum(entry.source != "polled" for entry in entries.values())
        assert leased == roll._address_of
        assert all(m.running >= 0 for member in roll.members() for m in member.worker.models)
