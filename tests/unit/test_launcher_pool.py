"""The pool over a launcher that keeps its workers in a list: who is started, who is stopped, what is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from inferhub.core.errors import SetupError
from inferhub.core.fleet import FleetView, Member
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.orchestrator.launchers.base import Launched
from inferhub.orchestrator.pool import PoolLimits, WorkerPool

SPEC = ModelSpec(name="m", backend="echo")


def model(running: int = 0, queued: int = 0) -> ModelStatus:
    return ModelStatus(SPEC, (), "cpu", running, queued, pending_cost=running + queued, s_per_cost=1.0)


class Village:
    """A `Launcher` whose workers are in the fleet as soon as they are started."""

    def __init__(self, least: int = 2, most: int | None = 8) -> None:
        self.now_s = 0.0
        self.workers: dict[str, Launched] = {}
        self.members: dict[str, Member] = {}
        self.stopping: list[str] = []
        self.may_stop = asyncio.Event()
        self.pool = WorkerPool(
            self, self.view, PoolLimits(least, most), prefix="w", drain_grace_s=20, clock=lambda: self.now_s
        )

    def view(self) -> FleetView:
        return FleetView(members=tuple(self.members.values()))

    def serves(self, name: str, **figures: int) -> None:
        self.members[name] = Member(WorkerStatus(name, (model(**figures),)))

    async def start(self, id: str) -> None:  # noqa: A002
        self.workers[id] = Launched(id, is_running=True)
        self.serves(id)

    async def stop(self, id: str, grace_s: float) -> None:  # noqa: A002
        assert grace_s == 20
        self.stopping.append(id)
        await self.may_stop.wait()
        self.workers.pop(id)
        self.members.pop(id)

    def launched(self) -> Sequence[Launched]:
        return list(self.workers.values())

    async def close(self, grace_s: float) -> None:
        for name in list(self.workers):
            await self.stop(name, grace_s)

    async def pass_by(self, duration_s: int) -> list[str]:
        """Ticks once a second; who was to be stopped."""
        gone: list[str] = []
        for _ in range(duration_s):
            self.now_s += 1
            gone += await self.pool.tick()
        return gone


async def test_it_starts_as_many_as_it_should_and_keeps_them() -> None:
    village = Village(least=3, most=None)
    told: list[str] = []
    await village.pool.start(told.append)
    assert sorted(village.workers) == sorted(told) == ["w-0", "w-1", "w-2"]
    for name in village.workers:
        village.serves(name, queued=100)
    assert await village.pass_by(600) == []
    assert len(village.workers) == 3, "without a higher limit there is nothing to decide"


async def test_it_grows_with_what_waits_and_shrinks_by_those_that_have_nothing_to_do() -> None:
    village = Village()
    await village.pool.start()
    for name in ("w-0", "w-1"):
        village.serves(name, running=1, queued=9)
    await village.pass_by(4)
    assert sorted(village.workers) == ["w-0", "w-1", "w-2", "w-3"]
    for name in ("w-0", "w-3"):
        village.serves(name, running=1)
    village.serves("w-1")
    assert await village.pass_by(70) == ["w-2"], "the last one that has nothing to do"
    assert await village.pass_by(70) == ["w-1"]
    village.serves("w-0")
    assert await village.pass_by(600) == [], "two of four are leaving already"


async def test_one_that_leaves_is_not_counted_and_its_name_is_not_given_twice() -> None:
    village = Village(least=1)
    await village.pool.start()
    village.serves("w-0", running=1, queued=3)
    await village.pass_by(4)
    assert sorted(village.workers) == ["w-0", "w-1"]
    village.serves("w-0", running=1)
    running = asyncio.create_task(village.pool.run())
    village.now_s += 100
    while not village.stopping:
        village.now_s += 100
        await asyncio.sleep(0.05)
    assert village.stopping == ["w-1"]
    shown = village.pool.state()
    assert shown["desired"] == 1
    assert isinstance(shown["launched"], list)
    assert [one["leaving"] for one in shown["launched"]] == [False, True]
    # It is needed again while it drains.
    village.serves("w-0", running=1, queued=9)
    while len(village.workers) < 3:
        village.now_s += 2
        await asyncio.sleep(0.05)
    assert sorted(village.workers) == ["w-0", "w-1", "w-2"]
    village.may_stop.set()
    while "w-1" in village.workers:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])


async def test_those_that_are_draining_or_silent_or_loading_do_not_count_as_serving() -> None:
    village = Village(least=2)
    await village.pool.start()
    busy = model(running=1, queued=9)
    village.members["w-0"] = Member(WorkerStatus("w-0", (replace(busy, loading=True),)))
    village.members["w-1"] = Member(WorkerStatus("w-1", (busy,)))
    await village.pass_by(60)
    assert len(village.workers) == 2, "one is still loading: it was asked for because of this work"
    village.members["w-0"] = Member(WorkerStatus("w-0", (busy,)), is_suspect=True)
    await village.pass_by(60)
    assert len(village.workers) == 2, "one may be dead, and is started again by the launcher"
    village.workers["w-0"] = Launched("w-0", is_looping=True)
    await village.pass_by(4)
    assert len(village.workers) == 4, "one that dies again and again is no help to wait for"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Launched("w-0", refused="No such device."), "No such device"),
        (
            Launched("w-0", is_looping=True, last_end="was ended by SIGSEGV"),
            "'w-0' was ended by SIGSEGV, again",
        ),
    ],
)
async def test_a_first_worker_that_cannot_run_ends_the_start(state: Launched, words: str) -> None:
    village = Village()

    async def starts_in_vain(id: str) -> None:  # noqa: A002
        village.workers[id] = replace(state, id=id)

    village.start = starts_in_vain  # type: ignore[method-assign]
    with pytest.raises(SetupError, match=words):
        await village.pool.start()
