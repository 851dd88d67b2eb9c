"""Views of the fleet as steps: whatever happens, the reader has the whole view, and none that goes back in time."""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from typing import Any

import pytest

from inferhub.core.fleet import FleetView, Member
from inferhub.core.serving import WorkerStatus, alike
from inferhub.testing.plane import a_worker
from inferhub.transport import codec_views
from inferhub.transport._pb import orchestrator_pb2 as pb
from inferhub.transport.codec_views import ViewReader, encode_step


def a_view(*members: Member | WorkerStatus, epoch: str = "one", revision: int = 1) -> FleetView:
    shown = tuple(m if isinstance(m, Member) else Member(m) for m in members)
    return FleetView(epoch, revision, shown)


def sent(step: pb.WatchReply) -> pb.WatchReply:
    return pb.WatchReply.FromString(step.SerializeToString())


def by_id(view: FleetView) -> dict[str, Member]:
    return {m.worker.id: m for m in view.members}


def read(reader: ViewReader, view: FleetView, before: FleetView | None = None, at_s: float = 0.0) -> Any:
    if before is None:
        reader.begin()
    return reader.take(sent(encode_step(before, view)), at_s)


@pytest.mark.parametrize("seed", range(20))
def test_any_history_arrives_as_it_was(seed: int) -> None:
    dice = random.Random(seed)
    reader, before, workers = ViewReader(5.0), None, dict[str, WorkerStatus]()
    for revision in range(1, 60):
        id_ = f"w{dice.randrange(6)}"
        worker = workers.get(id_)
        match dice.randrange(5):
            case 0:
                workers.pop(id_, None)
            case 1 if worker:
                workers[id_] = replace(worker, incarnation=worker.incarnation + 1, seq=1)
            case 2 if worker:
                workers[id_] = replace(worker, labels={"region": str(revision)})
            case _ if worker:
                running = replace(worker.models[0], running=revision, prefixes=(revision,))
                workers[id_] = replace(worker, models=(running,), seq=worker.seq + 1, at_s=float(revision))
            case _:
                # Comes with a life that is at least as young as its last one.
                workers[id_] = a_worker(id_, incarnation=1_700_000_000_000 + revision)
        members = [Member(w, dice.random() < 0.2) for w in workers.values()]
        view = a_view(*members, revision=revision)
        if dice.random() < 0.1:
            before = None
        shown = read(reader, view, before)
        assert by_id(shown) == by_id(view)
        assert (shown.epoch, shown.revision) == ("one", revision)
        before = view


def test_only_what_changed_is_sent_and_figures_as_a_beat() -> None:
    one, two = a_worker("w1"), a_worker("w2")
    before = a_view(one, two)
    assert encode_step(before, a_view(one, two, revision=2)).ByteSize() < 10
    moved = encode_step(before, a_view(replace(one, seq=2, draining=True), two))
    assert (len(moved.members), len(moved.beats)) == (0, 1)
    new_life = encode_step(before, a_view(replace(one, incarnation=one.incarnation + 1), two))
    assert (len(new_life.members), len(new_life.beats)) == (1, 0)
    assert list(encode_step(before, a_view(two)).gone) == ["w1"]
    assert not alike(one, replace(one, address="elsewhere:1"))
    device = replace(one.devices[0], memory_free_bytes=1)
    assert alike(one, replace(one, devices=(device,)))
    assert not alike(one, replace(one, devices=()))


def test_a_sign_of_life_is_no_news() -> None:
    reader, view = ViewReader(5.0), a_view(a_worker("w1"))
    assert read(reader, view) is not None
    assert read(reader, view, view) is None
    assert read(reader, view) is None, "the same again after a reconnect"


def test_a_step_that_is_old_or_fits_nothing_is_refused_and_changes_nothing() -> None:
    reader, view = ViewReader(5.0), a_view(a_worker("w1"), revision=5)
    read(reader, view)
    for step in (
        encode_step(view, a_view(revision=4)),
        encode_step(view, a_view(epoch="two", revision=6)),
        encode_step(a_view(a_worker("w9")), a_view(a_worker("w9", seq=2), revision=6)),
    ):
        with pytest.raises(ValueError, match=r"revision|another life|does not have"):
            reader.take(sent(step), 0.0)
        assert reader.view() == view
    with pytest.raises(ValueError, match="revision 3 after 5"):
        read(reader, a_view(revision=3))
    assert reader.view() == view


def test_a_life_that_is_over_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    reader = ViewReader(5.0)
    young = a_worker("w1", incarnation=2000)
    read(reader, a_view(young))
    old = a_view(a_worker("w1", incarnation=1000), a_worker("w2"), epoch="two")
    shown = read(reader, old)
    assert {m.worker.id: m.worker.incarnation for m in shown.members}["w1"] == 2000
    assert "old life of worker w1" in caplog.text
    beat = a_view(a_worker("w1", incarnation=1000, seq=2), a_worker("w2", seq=2), epoch="two", revision=2)
    shown = read(reader, beat, old)
    assert {m.worker.id: m.worker.seq for m in shown.members} == {"w1": 1, "w2": 2}


def test_workers_are_held_over_a_restart_until_they_are_named_or_it_is_over() -> None:
    reader = ViewReader(5.0)
    read(reader, a_view(a_worker("w1"), a_worker("w2"), a_worker("w3")))
    fresh = a_view(epoch="two")
    shown = read(reader, fresh, at_s=100.0)
    assert all(m.is_suspect for m in shown.members)
    assert len(shown.members) == 3
    back = a_view(a_worker("w1", seq=9), epoch="two", revision=2)
    shown = read(reader, back, fresh, at_s=101.0)
    assert {m.worker.id: m.is_suspect for m in shown.members} == {"w1": False, "w2": True, "w3": True}
    left = sent(encode_step(back, replace(back, revision=3)))
    left.gone.append("w2")
    shown = reader.take(left, 102.0)
    assert shown is not None
    assert set(by_id(shown)) == {"w1", "w3"}
    assert read(reader, replace(back, revision=3), back, at_s=104.9) is None
    shown = read(reader, replace(back, revision=3), back, at_s=105.0)
    assert set(by_id(shown)) == {"w1"}, "a sign of life is enough to end it"


def test_the_same_orchestrator_is_believed_at_once() -> None:
    reader = ViewReader(5.0)
    read(reader, a_view(a_worker("w1"), a_worker("w2")))
    assert set(by_id(read(reader, a_view(a_worker("w1"), revision=2)))) == {"w1"}


def test_the_memory_of_lives_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_views, "MAX_LIVES", 50)
    reader = ViewReader(5.0)
    for n in range(3):
        members = [a_worker(f"w{n}-{i}", incarnation=5) for i in range(50)]
        read(reader, a_view(*members, revision=n + 1))
    assert len(reader._lives) == 50
