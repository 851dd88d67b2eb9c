"""Two orchestrators over one store: one view, one that acts, and a store that may be away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from inferhub.core.errors import StoreFailed
from inferhub.core.fleet import EVERYWHERE, Deployment, FleetView, Placement, deployment_of
from inferhub.core.models import ModelSpec
from inferhub.orchestrator.service import Orchestrator
from inferhub.stores.fleet.base import Sighting, Wanted
from inferhub.stores.fleet.memory import MemoryFleet
from inferhub.transport.base import Transport
from inferhub.transport.local import LocalTransport
from inferhub.worker.announcer import Announcer
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

HEARTBEAT_S = 0.1
LEASE_S = 1.5

ECHO = ModelSpec("echo", "echo")
MORE = ModelSpec("more", "echo")


def wish(*specs: ModelSpec, placement: Placement = EVERYWHERE) -> list[Deployment]:
    return [Deployment(deployment_of(spec), placement) for spec in specs]


def name_of(spec: ModelSpec) -> str:
    return deployment_of(spec).name


class Database:
    """A memory store that can be away."""

    def __init__(self) -> None:
        self._inner = MemoryFleet()
        self.is_there = True

    async def saw(self, sightings: Sequence[Sighting], ttl_s: float) -> None:
        self._check()
        await self._inner.saw(sightings, ttl_s)

    async def sightings(self) -> Sequence[Sighting]:
        self._check()
        return await self._inner.sightings()

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002
        self._check()
        await self._inner.forget(id, incarnation)

    async def want(self, wanted: Wanted, ttl_s: float) -> None:
        self._check()
        await self._inner.want(wanted, ttl_s)

    async def wants(self) -> Sequence[Wanted]:
        self._check()
        return await self._inner.wants()

    async def lead(self, holder: str, ttl_s: float) -> bool:
        self._check()
        return await self._inner.lead(holder, ttl_s)

    async def resign(self, holder: str) -> None:
        self._check()
        await self._inner.resign(holder)

    async def close(self) -> None:
        await self._inner.close()

    def _check(self) -> None:
        if not self.is_there:
            raise StoreFailed


@dataclass
class Pair:
    """Two orchestrators, their store, and workers that announce themselves to one of them."""

    store: Database = field(default_factory=Database)
    workers: dict[str, Worker] = field(default_factory=dict)
    runs: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reach(self, address: str) -> Transport:
        return LocalTransport(self.workers[address])

    def start(self) -> Orchestrator:
        plane = Orchestrator(
            reach=self.reach,
            store=self.store,
            heartbeat_s=HEARTBEAT_S,
            lease_s=LEASE_S,
            drain_grace_s=5.0,
            quiet_s=0.0,
            wants_grace_s=60.0,
        )
        self.runs[plane.epoch] = asyncio.create_task(plane.run())
        return plane

    async def stop(self, plane: Orchestrator, *, is_killed: bool) -> None:
        run = self.runs.pop(plane.epoch)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        if not is_killed:
            await plane.close()

    def worker(self, n: int, plane: Orchestrator) -> asyncio.Task[None]:
        host = Host(resolve=lambda _: pytest.fail("echo has no weights"))
        worker = Worker(f"w{n}", host, tuple, address=f"10.0.0.{n}:50051")
        self.workers[worker.address] = worker
        return self.announce(worker, plane)

    def announce(self, worker: Worker, plane: Orchestrator) -> asyncio.Task[None]:
        announcer = Announcer(plane, worker.status)
        worker.on_change = announcer.notice
        self.tasks.append(asyncio.create_task(announcer.run()))
        return self.tasks[-1]

    def models(self) -> list[list[str]]:
        return [[m.spec.name for m in worker.models()] for worker in self.workers.values()]


@asynccontextmanager
async def a_pair() -> AsyncIterator[Pair]:
    pair = Pair()
    try:
        yield pair
    finally:
        for task in (*pair.tasks, *pair.runs.values()):
            task.cancel()
        await asyncio.gather(*pair.tasks, *pair.runs.values(), return_exceptions=True)
        for worker in pair.workers.values():
            await worker.close()


async def until(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.005)


def ids(view: FleetView) -> list[str]:
    return sorted(member.worker.id for member in view.members)


async def test_both_know_all_workers_with_their_models() -> None:
    async with a_pair() as pair:
        one, two = pair.start(), pair.start()
        pair.worker(1, one)
        pair.worker(2, two)
        await until(lambda: ids(one.view()) == ids(two.view()) == ["w1", "w2"])
        await one.want("g", wish(ECHO))
        assert pair.models() == [[name_of(ECHO)], [name_of(ECHO)]]
        await until(lambda: [len(m.worker.models) for m in two.view().members] == [1, 1])
        # Not only once: who is heard by the other one stays, and is no suspect.
        for _ in range(30):
            await asyncio.sleep(HEARTBEAT_S)
            assert ids(one.view()) == ids(two.view()) == ["w1", "w2"]


async def test_one_of_them_acts_for_what_gateways_told_the_other() -> None:
    async with a_pair() as pair:
        one = pair.start()
        await until(lambda: one.stats()["leads"])
        two = pair.start()
        await two.want("g", wish(ECHO))
        pair.worker(1, two)
        await until(lambda: one.figures()["actions"] == {"load": 1})
        assert pair.models() == [[name_of(ECHO)]]
        assert two.stats()["leads"] is False
        await two.want("g", ())
        await until(lambda: one.figures()["actions"].get("unload"))
        assert pair.models() == [[]]
        assert two.figures()["actions"] == {}


@pytest.mark.parametrize("is_killed", [True, False])
async def test_when_the_one_that_acts_is_gone_the_other_one_does(is_killed: bool) -> None:
    async with a_pair() as pair:
        one = pair.start()
        await until(lambda: one.stats()["leads"])
        two = pair.start()
        announcing = pair.worker(1, one)
        await two.want("g", wish(ECHO))
        await until(lambda: ids(two.view()) == ["w1"])
        began_s = asyncio.get_running_loop().time()
        await pair.stop(one, is_killed=is_killed)
        announcing.cancel()
        pair.announce(next(iter(pair.workers.values())), two)
        pair.worker(2, two)
        await until(lambda: pair.models() == [[name_of(ECHO)], [name_of(ECHO)]])
        took_s = asyncio.get_running_loop().time() - began_s
        assert two.stats()["leads"] is True
        if is_killed:
            assert took_s > LEASE_S / 2, "two acted at the same time"
        # It never lost sight of the first one's worker.
        assert two.figures()["changes"].get("lost", 0) == 0


async def test_a_worker_that_leaves_one_is_forgotten_by_both() -> None:
    async with a_pair() as pair:
        one, two = pair.start(), pair.start()
        announcing = pair.worker(1, one)
        await until(lambda: ids(two.view()) == ["w1"])
        announcing.cancel()
        await until(lambda: not one.view().members)
        await until(lambda: not two.view().members)
        assert await pair.store.sightings() == []


async def test_a_worker_that_dies_is_lost_by_both() -> None:
    async with a_pair() as pair:
        one, two = pair.start(), pair.start()
        announcing = pair.worker(1, Mute(one))  # type: ignore[arg-type]
        await until(lambda: ids(two.view()) == ["w1"])
        announcing.cancel()
        await until(lambda: not one.view().members and not two.view().members)
        # The copies that each has of the other's sighting do not bring it back.
        for _ in range(20):
            await asyncio.sleep(HEARTBEAT_S)
            assert not one.view().members
            assert not two.view().members


class Mute:
    """An orchestrator to which nobody says good-bye."""

    def __init__(self, plane: Orchestrator) -> None:
        self.register, self.heartbeat = plane.register, plane.heartbeat

    async def leave(self, id: str, incarnation: int) -> None:  # noqa: A002
        pass


async def test_a_store_that_is_away_empties_nothing_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_pair() as pair:
        one = pair.start()
        await until(lambda: one.stats()["leads"])
        two = pair.start()
        pair.worker(1, one)
        pair.worker(2, two)
        await until(lambda: ids(one.view()) == ids(two.view()) == ["w1", "w2"])
        await one.want("g", wish(ECHO))
        with caplog.at_level(logging.INFO):
            pair.store.is_there = False
            await asyncio.sleep(3 * LEASE_S)
            assert ids(one.view()) == ids(two.view()) == ["w1", "w2"]
            assert not any(m.is_suspect for plane in (one, two) for m in plane.view().members)
            # Who led goes on loading, and unloads nothing; the other one does neither.
            assert (one.stats()["leads"], two.stats()["leads"]) == (True, False)
            await one.want("g", wish(MORE))
            pair.worker(3, one)
            await until(lambda: pair.models()[2] == [name_of(MORE)])
            await asyncio.sleep(5 * HEARTBEAT_S)
            assert pair.models()[0] == sorted([name_of(ECHO), name_of(MORE)])
            pair.store.is_there = True
            await until(lambda: ids(two.view()) == ["w1", "w2", "w3"])
            await until(lambda: pair.models() == [[name_of(MORE)]] * 3)
        said = [record.getMessage() for record in caplog.records if "store is" in record.getMessage()]
        assert sorted("away" in line for line in said) == [False, False, True, True]


async def test_a_restarted_one_knows_all_at_once_from_the_store() -> None:
    async with a_pair() as pair:
        one = pair.start()
        pair.worker(1, one)
        pair.worker(2, one)
        await one.want("g", wish(ECHO))
        await until(lambda: len(one.view().members) == 2)
        await asyncio.sleep(3 * HEARTBEAT_S)
        await pair.stop(one, is_killed=True)
        again = pair.start()
        await until(lambda: ids(again.view()) == ["w1", "w2"], timeout_s=LEASE_S)
        assert all(len(m.worker.models) == 1 for m in again.view().members)


async def test_a_gateway_that_comes_from_the_other_one_need_not_repeat_itself() -> None:
    async with a_pair() as pair:
        one, two = pair.start(), pair.start()
        pair.worker(1, two)
        await until(lambda: ids(one.view()) == ["w1"])
        await one.want("g", wish(ECHO))
        await pair.stop(one, is_killed=False)
        async with aclosing(two.watch("g")) as views:
            await anext(views)
            await until(lambda: two.stats()["leads"])
            await asyncio.sleep(10 * HEARTBEAT_S)
            assert pair.models() == [[name_of(ECHO)]]


async def test_the_one_that_acts_follows_a_gateway_that_went_to_the_other() -> None:
    async with a_pair() as pair:
        one = pair.start()
        await until(lambda: one.stats()["leads"])
        two = pair.start()
        pair.worker(1, one)
        await until(lambda: ids(two.view()) == ["w1"])
        async with aclosing(one.watch("g")) as views:
            await anext(views)
            await one.want("g", wish(ECHO))
        async with aclosing(two.watch("g")) as views:
            await anext(views)
            await two.want("g", wish(MORE))
            await until(lambda: one.figures()["actions"].get("unload"))
            assert pair.models() == [[name_of(MORE)]]


async def test_what_cannot_be_read_in_the_store_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with a_pair() as pair:
        await pair.store.saw([Sighting("w8", 1, 1, b"\xff\xff\xff"), Sighting("w9", 1, 1, b"")], 60.0)
        await pair.store.want(Wanted("h", b"\xff\xff\xff"), 60.0)
        one = pair.start()
        pair.worker(1, one)
        await until(lambda: ids(one.view()) == ["w1"])
        await until(lambda: one.stats()["leads"])
        assert one.figures()["refused"].keys() == {"invalid_id", "unreadable"}
        assert "cannot be read" in caplog.text
