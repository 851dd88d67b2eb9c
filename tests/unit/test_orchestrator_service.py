"""The orchestrator with real workers in this process: wants become models, silence and lies become nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from inferhub.core.call import Call, Emit
from inferhub.core.errors import Conflict, EndpointLost, InferHubError, Invalid, SetupError, UnknownWorker
from inferhub.core.fleet import EVERYWHERE, Deployment, FleetView, Placement, deployment_of
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import DeviceStatus, WorkerStatus, beat_of
from inferhub.orchestrator.service import Orchestrator
from inferhub.telemetry.metrics import Metrics
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.local import LocalTransport
from inferhub.worker.announcer import Announcer
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

HEARTBEAT_S = 0.1
LEASE_S = 1.0

ECHO = ModelSpec("echo", "echo")
MORE = ModelSpec("more", "echo")
SLOW = ModelSpec("slow", "echo", options={"gap_s": 0.05})
BAD = ModelSpec("bad", "echo", options={"nonsense": 1})


def wish(*specs: ModelSpec, placement: Placement = EVERYWHERE) -> list[Deployment]:
    return [Deployment(deployment_of(spec), placement) for spec in specs]


def name_of(spec: ModelSpec) -> str:
    return deployment_of(spec).name


@dataclass
class Cabled:
    """A real worker behind a cable that can be pulled, and that shows what went over it."""

    n: int
    labels: dict[str, str] = field(default_factory=dict)
    free_bytes: int = 100
    is_plugged: bool = True
    loads: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()
        host = Host(resolve=lambda _: pytest.fail("echo has no weights"))
        self.worker = Worker(f"w{self.n}", host, self.devices, address=self.address, labels=self.labels)
        self.inner = LocalTransport(self.worker)

    def devices(self) -> tuple[DeviceStatus, ...]:
        return (DeviceStatus("cpu", "CPU", 1000, self.free_bytes),)

    @property
    def address(self) -> str:
        return f"10.0.0.{self.n}:50051"

    def models(self) -> list[str]:
        return [model.spec.name for model in self.worker.models()]

    async def infer(self, call: Call, emit: Emit) -> None:
        await self.inner.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        self._check()
        self.loads.append(spec.name)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            return await self.inner.load(spec)
        finally:
            self.at_once -= 1

    async def unload(self, name: str) -> None:
        self._check()
        await self.inner.unload(name)

    async def status(self) -> WorkerStatus:
        self._check()
        return await self.inner.status()

    async def drain(self, grace_s: float) -> None:
        await self.inner.drain(grace_s)

    async def close(self) -> None:
        await self.inner.close()

    def _check(self) -> None:
        if not self.is_plugged:
            raise EndpointLost


@dataclass
class Shop:
    """Orchestrators, one after the other or side by side, and workers that announce themselves."""

    workers: list[Cabled]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reach(self, address: str) -> Cabled:
        return next(cabled for cabled in self.workers if cabled.address == address)

    def start(self, **ports: object) -> Orchestrator:
        settings = {
            "heartbeat_s": HEARTBEAT_S,
            "lease_s": LEASE_S,
            "drain_grace_s": 5.0,
            "quiet_s": 0.0,
            **ports,
        }
        plane = Orchestrator(reach=self.reach, **settings)  # type: ignore[arg-type]
        self.tasks.append(asyncio.create_task(plane.run()))
        return plane

    def announce(self, plane: Orchestrator, cabled: Cabled) -> asyncio.Task[None]:
        announcer = Announcer(plane, cabled.status)
        cabled.worker.on_change = announcer.notice
        self.tasks.append(asyncio.create_task(announcer.run()))
        return self.tasks[-1]

    async def stop(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def shop(*workers: Cabled) -> AsyncIterator[Shop]:
    place = Shop(list(workers))
    try:
        yield place
    finally:
        await place.stop(*place.tasks)
        for cabled in workers:
            await cabled.close()


async def until(is_so: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():
            await asyncio.sleep(0.005)


def ids(view: FleetView) -> list[str]:
    return sorted(member.worker.id for member in view.members)


def seen_models(view: FleetView) -> dict[str, list[str]]:
    return {m.worker.id: [model.spec.name for model in m.worker.models if model.ready] for m in view.members}


async def everybody(place: Shop, plane: Orchestrator) -> list[asyncio.Task[None]]:
    tasks = [place.announce(plane, cabled) for cabled in place.workers]
    await until(lambda: len(plane.view().members) == len(place.workers))
    return tasks


# --- wants --------------------------------------------------------------------------------------


async def test_what_is_wanted_is_loaded_everywhere_when_want_returns() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start()
        await everybody(place, plane)
        said: list[str] = []
        await plane.want("g", wish(ECHO, MORE), said.append)
        assert sorted(said) == ["echo", "more"]
        expected = sorted([name_of(ECHO), name_of(MORE)])
        assert seen_models(plane.view()) == {"w1": expected, "w2": expected}
        assert [cabled.models() for cabled in place.workers] == [expected, expected]


async def test_workers_load_side_by_side_and_each_one_model_after_the_other() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start()
        await everybody(place, plane)
        for cabled in place.workers:
            cabled.gate.clear()
        wanting = asyncio.create_task(plane.want("g", wish(ECHO, MORE)))
        await until(lambda: all(cabled.at_once for cabled in place.workers))
        for cabled in place.workers:
            cabled.gate.set()
        await wanting
        assert [cabled.most_at_once for cabled in place.workers] == [1, 1]
        assert [cabled.loads for cabled in place.workers] == [[name_of(ECHO), name_of(MORE)]] * 2


async def test_a_load_that_is_right_is_never_repeated() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        await plane.want("g", wish(ECHO))
        await plane.want("other", wish(ECHO))
        await asyncio.sleep(5 * HEARTBEAT_S)
        assert place.workers[0].loads == [name_of(ECHO)]


async def test_what_a_loaded_model_can_take_over_is_told_once_more() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        later = replace(ECHO, load="demand", idle_ttl_s=60.0)
        assert name_of(later) == name_of(ECHO)
        await plane.want("g", wish(later))
        assert [m.spec.idle_ttl_s for m in place.workers[0].worker.models()] == [60.0]
        assert [m.spec.idle_ttl_s for m in plane.view().members[0].worker.models] == [60.0]
        await asyncio.sleep(5 * HEARTBEAT_S)
        assert len(place.workers[0].loads) == 2


async def test_what_cannot_be_loaded_fails_all_of_it_and_leaves_what_was_there() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        with pytest.raises(SetupError, match=r"Model 'bad' cannot be loaded: .*nonsense") as refused:
            await plane.want("g", wish(ECHO, MORE, BAD))
        assert refused.value.wire_code == "setup_error"
        assert [cabled.models() for cabled in place.workers] == [[name_of(ECHO)]] * 2
        await asyncio.sleep(5 * HEARTBEAT_S)
        assert seen_models(plane.view()) == {"w1": [name_of(ECHO)], "w2": [name_of(ECHO)]}


async def test_a_want_that_is_given_up_takes_back_what_it_began() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        place.workers[0].gate.clear()
        wanting = asyncio.create_task(plane.want("g", wish(MORE)))
        await until(lambda: place.workers[0].at_once)
        wanting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wanting
        place.workers[0].gate.set()
        await asyncio.sleep(5 * HEARTBEAT_S)
        assert place.workers[0].models() == []
        assert place.workers[0].at_once == 0


async def test_a_model_that_two_gateways_load_is_loaded_once_and_outlives_the_failure_of_one() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        place.workers[0].gate.clear()
        first = asyncio.create_task(plane.want("g1", wish(MORE, BAD)))
        await until(lambda: place.workers[0].at_once)
        second = asyncio.create_task(plane.want("g2", wish(MORE)))
        await asyncio.sleep(0)
        place.workers[0].gate.set()
        with pytest.raises(SetupError):
            await first
        await second
        assert place.workers[0].models() == [name_of(MORE)]
        assert place.workers[0].loads.count(name_of(MORE)) == 1


async def test_a_worker_that_does_not_answer_fails_nothing_and_is_given_its_models_later() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start(lease_s=60.0)
        _, second = await everybody(place, plane)
        await place.stop(second)
        # It left; it comes back with a cable that carries reports only.
        place.workers[1].is_plugged = False
        status = await place.workers[1].inner.status()
        await plane.register(replace(status, incarnation=status.incarnation + 1))
        await plane.want("g", wish(ECHO))
        assert [cabled.models() for cabled in place.workers] == [[name_of(ECHO)], []]
        assert plane.figures()["actions"]["load_failed"] == 1


async def test_no_worker_at_all_is_no_failure_but_a_fixed_list_that_can_never_do_it_is() -> None:
    async with shop(Cabled(1)) as place:
        await place.start().want("g", wish(ECHO))
        fixed = place.start(polled=[place.workers[0].address], poll_s=0.01)
        with pytest.raises(SetupError, match=r"Model 'echo' cannot be loaded: No worker has .*gpu=h100"):
            await fixed.want("g", wish(ECHO, placement=Placement(labels={"gpu": "h100"})))
        with pytest.raises(SetupError, match="No worker has device 'cuda:0'"):
            await fixed.want("g", wish(replace(ECHO, device="cuda:0")))
        grows = place.start()
        await everybody(place, grows)
        await grows.want("g", wish(ECHO, placement=Placement(labels={"gpu": "h100"})))
        assert place.workers[0].models() == []


@pytest.mark.parametrize(
    "wanted",
    [
        [*wish(ECHO), *wish(ECHO)],
        [Deployment(ModelSpec(f"m{n}#1", "echo")) for n in range(1025)],
        [Deployment(ModelSpec("", "echo"))],
        [Deployment(ModelSpec("m#1", "echo"), Placement(replicas=-1))],
    ],
)
async def test_a_want_that_makes_no_sense_is_refused_and_changes_nothing(
    wanted: Sequence[Deployment],
) -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(MORE))
        with pytest.raises(Invalid):
            await plane.want("g", wanted)
        assert place.workers[0].models() == [name_of(MORE)]


# --- placement ----------------------------------------------------------------------------------


async def test_copies_are_where_memory_is_and_are_replaced_when_their_worker_is_gone() -> None:
    async with shop(Cabled(1), Cabled(2, free_bytes=900), Cabled(3)) as place:
        plane = place.start()
        announcers = await everybody(place, plane)
        await plane.want("g", wish(ECHO, placement=Placement(replicas=1)))
        assert [cabled.models() for cabled in place.workers] == [[], [name_of(ECHO)], []]
        # Killed: nobody says good-bye.
        place.workers[1].is_plugged = False
        announcers[1].cancel()
        await until(lambda: place.workers[0].models() == [name_of(ECHO)])
        assert place.workers[2].models() == []


async def test_only_workers_with_the_labels_get_it() -> None:
    async with shop(Cabled(1, {"gpu": "h100"}), Cabled(2)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO, placement=Placement(labels={"gpu": "h100"})))
        assert [cabled.models() for cabled in place.workers] == [[name_of(ECHO)], []]


async def test_a_worker_that_comes_late_or_comes_back_empty_is_given_its_models() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await plane.want("g", wish(ECHO))
        await everybody(place, plane)
        await until(lambda: place.workers[0].models() == [name_of(ECHO)])
        await place.workers[0].worker.unload(name_of(ECHO))
        await until(lambda: len(place.workers[0].loads) == 2 and place.workers[0].models())


async def test_what_failed_is_not_tried_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await plane.want("g", wish(BAD))
        await everybody(place, plane)
        await until(lambda: place.workers[0].loads)
        with caplog.at_level(logging.WARNING):
            await asyncio.sleep(8 * HEARTBEAT_S)
        assert place.workers[0].loads == [name_of(BAD)]


# --- unloading ----------------------------------------------------------------------------------


async def call(cabled: Cabled, name: str) -> Collector:
    emit = Collector()
    await cabled.infer(make_call("chat", name, messages=[{"role": "user", "content": "a b c d e f g"}]), emit)
    return emit


async def test_what_nobody_wants_any_more_is_unloaded_once_it_is_idle() -> None:
    async with shop(Cabled(1)) as place:
        cabled, plane = place.workers[0], place.start()
        await everybody(place, plane)
        await cabled.load(ModelSpec("operators-own", "echo"))
        await plane.want("g1", wish(SLOW, ECHO))
        await plane.want("g2", wish(ECHO))
        running = asyncio.create_task(call(cabled, name_of(SLOW)))
        await until(lambda: any(model.running for model in cabled.worker.models()))
        await plane.want("g1", ())
        await until(lambda: name_of(SLOW) not in cabled.models())
        assert running.done()
        assert len((await running).chunks) > 5
        assert cabled.models() == [name_of(ECHO), "operators-own"]


async def test_what_runs_on_and_on_is_unloaded_when_its_grace_is_over() -> None:
    async with shop(Cabled(1)) as place:
        cabled, plane = place.workers[0], place.start(drain_grace_s=0.3)
        await everybody(place, plane)
        endless = replace(SLOW, options={"gap_s": 5.0})
        await plane.want("g", wish(endless))
        running = asyncio.create_task(call(cabled, name_of(endless)))
        await until(lambda: any(model.running for model in cabled.worker.models()))
        await plane.want("g", ())
        await until(lambda: not cabled.models())
        with pytest.raises(InferHubError):
            await running


async def test_what_is_wanted_again_in_time_is_not_interrupted() -> None:
    async with shop(Cabled(1)) as place:
        cabled, plane = place.workers[0], place.start(drain_grace_s=0.6)
        await everybody(place, plane)
        await plane.want("g", wish(SLOW))
        running = asyncio.create_task(call(cabled, name_of(SLOW)))
        await until(lambda: any(model.running for model in cabled.worker.models()))
        await plane.want("g", ())
        await asyncio.sleep(3 * HEARTBEAT_S)
        await plane.want("g", wish(SLOW))
        assert len((await running).chunks) > 5
        await asyncio.sleep(10 * HEARTBEAT_S)
        assert cabled.loads == [name_of(SLOW)]
        assert cabled.models() == [name_of(SLOW)]


async def test_nothing_is_unloaded_before_gateways_could_say_what_they_want() -> None:
    async with shop(Cabled(1)) as place:
        cabled = place.workers[0]
        await cabled.load(deployment_of(ECHO))
        plane = place.start(quiet_s=0.5)
        await everybody(place, plane)
        # Nobody is there who could want anything.
        await asyncio.sleep(1.0)
        assert cabled.models() == [name_of(ECHO)]
        # One is there, and has not said it yet.
        async with aclosing(plane.watch("g1")) as views:
            await anext(views)
            await plane.want("g2", wish(MORE))
            await asyncio.sleep(5 * HEARTBEAT_S)
            assert cabled.models() == sorted([name_of(ECHO), name_of(MORE)])
            await plane.want("g1", ())
            await until(lambda: cabled.models() == [name_of(MORE)])


async def test_a_young_orchestrator_unloads_nothing_though_one_gateway_has_spoken() -> None:
    async with shop(Cabled(1)) as place:
        cabled = place.workers[0]
        await cabled.load(deployment_of(ECHO))
        plane = place.start(quiet_s=1.0)
        began_s = asyncio.get_running_loop().time()
        await everybody(place, plane)
        await plane.want("g", ())
        await until(lambda: cabled.models() == [])
        assert asyncio.get_running_loop().time() - began_s >= 1.0


async def test_settings_that_reports_do_not_show_are_told_too() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(replace(ECHO, load="demand")))
        await plane.want("g", wish(ECHO))
        assert len(place.workers[0].loads) == 2
        assert [m.spec.load for m in place.workers[0].worker.models()] == ["start"]


async def test_what_a_gateway_wanted_is_kept_while_it_watches_and_a_while_longer() -> None:
    async with shop(Cabled(1)) as place:
        cabled, plane = place.workers[0], place.start(wants_grace_s=0.5)
        await everybody(place, plane)
        await plane.want("stays", ())
        stays = plane.watch("stays")
        await anext(stays)
        async with aclosing(plane.watch("goes")) as views:
            await anext(views)
            await plane.want("goes", wish(ECHO))
            await asyncio.sleep(1.0)
            assert cabled.models() == [name_of(ECHO)]
        await until(lambda: cabled.models() == [])
        await stays.aclose()


# --- the view -----------------------------------------------------------------------------------


async def test_a_watcher_sees_the_view_at_once_and_the_newest_of_what_follows() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start()
        async with asyncio.timeout(20), aclosing(plane.watch("g")) as views:
            first = await anext(views)
            assert (first.epoch, first.members) == (plane.epoch, ())
            place.announce(plane, place.workers[0])
            second = await anext(views)
            assert ids(second) == ["w1"]
            # While this watcher is busy much happens, of which it sees the end.
            place.announce(plane, place.workers[1])
            await until(lambda: len(plane.view().members) == 2)
            await plane.want("g", wish(ECHO))
            view = second
            while not all(seen_models(view).values()) or len(view.members) < 2:
                before, view = view, await anext(views)
                assert view.revision > before.revision
            assert seen_models(view) == {"w1": [name_of(ECHO)], "w2": [name_of(ECHO)]}


async def test_many_watchers_each_see_what_happens_last() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()

        async def follow(n: int) -> FleetView:
            async with aclosing(plane.watch(f"g{n}")) as views:
                async for view in views:
                    await asyncio.sleep(n % 7 / 100)
                    if ids(view) == ["w1"]:
                        return view
            raise AssertionError

        watching = [asyncio.create_task(follow(n)) for n in range(100)]
        await asyncio.sleep(0.1)
        place.announce(plane, place.workers[0])
        async with asyncio.timeout(20):
            await asyncio.gather(*watching)


async def test_silence_makes_suspects_and_then_strangers() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        (announcer,) = await everybody(place, plane)
        place.workers[0].is_plugged = False
        announcer.cancel()
        plane.leave = None  # type: ignore[assignment,method-assign]
        await until(lambda: any(member.is_suspect for member in plane.view().members))
        await until(lambda: not plane.view().members)
        assert plane.figures()["changes"]["lost"] == 1


async def test_a_worker_that_leaves_is_gone_at_once() -> None:
    async with shop(Cabled(1), Cabled(2)) as place:
        plane = place.start(lease_s=60.0)
        tasks = await everybody(place, plane)
        await place.stop(tasks[0])
        assert ids(plane.view()) == ["w2"]


async def test_after_a_restart_the_view_is_whole_again_and_nothing_is_loaded_twice() -> None:
    async with shop(*map(Cabled, range(1, 6))) as place:
        plane = place.start()
        switch = Switch(plane)
        for cabled in place.workers:
            place.announce(switch, cabled)  # type: ignore[arg-type]
        await until(lambda: len(plane.view().members) == 5)
        await plane.want("g", wish(ECHO))
        # Killed, and started again: another object, which knows nothing.
        await place.stop(place.tasks[0])
        switch.plane = again = place.start()
        assert again.epoch != plane.epoch
        await until(lambda: len(again.view().members) == 5, timeout_s=10)
        await again.want("g", wish(ECHO))
        assert [cabled.loads for cabled in place.workers] == [[name_of(ECHO)]] * 5


class Switch:
    """The way to whichever orchestrator runs now."""

    def __init__(self, plane: Orchestrator) -> None:
        self.plane = plane

    def __getattr__(self, name: str) -> object:
        return getattr(self.plane, name)


# --- lies ---------------------------------------------------------------------------------------


async def test_lies_are_refused_counted_and_logged_and_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start(lease_s=60.0)
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        honest = await place.workers[0].status()
        lie = replace(honest, id="liar", address="10.9.9.9:1")
        ahead = replace(lie, incarnation=honest.incarnation + 10**9)
        twin = replace(honest, address="10.9.9.9:1", incarnation=honest.incarnation + 1)
        negative = replace(lie, models=(replace(honest.models[0], running=-1),))
        with caplog.at_level(logging.WARNING):
            for status, kind in ((ahead, Invalid), (negative, Invalid), (twin, Conflict)):
                for _ in range(50):
                    with pytest.raises(kind):
                        await plane.register(status)
            with pytest.raises(Conflict):
                await plane.heartbeat(beat_of(replace(honest, seq=0)))
            with pytest.raises(UnknownWorker):
                await plane.heartbeat(beat_of(lie))
        assert plane.figures()["refused"] == {
            "clock_ahead": 50, "invalid_running": 50, "duplicate_id": 50, "old_report": 1, "unknown_worker": 1,
        }  # fmt: skip
        assert len([r for r in caplog.records if "refused" in r.getMessage()]) == 4
        assert seen_models(plane.view()) == {"w1": [name_of(ECHO)]}


async def test_a_polled_worker_that_lies_counts_as_one_that_does_not_answer() -> None:
    async with shop(Cabled(1)) as place:
        cabled = place.workers[0]
        plane = place.start(polled=[cabled.address], poll_s=0.01)
        await until(lambda: ids(plane.view()) == ["w1"])
        cabled.free_bytes = -5
        await until(lambda: not plane.view().members)
        cabled.free_bytes = 5
        await until(lambda: ids(plane.view()) == ["w1"])
        assert plane.figures()["refused"]["invalid_memory"] >= 1


async def test_a_polled_worker_is_out_as_soon_as_it_does_not_answer_and_back_when_it_does() -> None:
    async with shop(Cabled(1)) as place:
        cabled = place.workers[0]
        plane = place.start(polled=[cabled.address], poll_s=0.01)
        await plane.want("g", wish(ECHO))
        assert seen_models(plane.view()) == {"w1": [name_of(ECHO)]}
        for _ in range(3):
            cabled.is_plugged = False
            await until(lambda: not plane.view().members)
            cabled.is_plugged = True
            await until(lambda: seen_models(plane.view()) == {"w1": [name_of(ECHO)]})
        assert cabled.loads == [name_of(ECHO)]


async def test_connections_are_kept_to_those_that_are_there() -> None:
    async with shop(Cabled(1)) as place:
        kept: list[set[str]] = []

        async def keep(addresses: object) -> None:
            kept.append(set(addresses))  # type: ignore[call-overload]

        plane = place.start(keep=keep, lease_s=0.3)
        await everybody(place, plane)
        await until(lambda: kept and kept[-1] == {place.workers[0].address})


async def test_what_it_says_of_itself() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        stats = plane.stats()
        assert stats["members"] == {"alive": 1, "suspect": 0, "draining": 0}
        assert stats["actions"] == {"load": 1}
        assert (stats["leads"], stats["braked"]) == (True, False)
        await place.workers[0].drain(0.0)
        await until(lambda: plane.figures()["members"]["draining"] == 1)


async def test_its_figures_are_metrics() -> None:
    async with shop(Cabled(1)) as place:
        plane = place.start()
        await everybody(place, plane)
        await plane.want("g", wish(ECHO))
        with pytest.raises(Invalid):
            await plane.register(WorkerStatus("liar", (), address="nowhere", incarnation=1))
        metrics = Metrics()
        metrics.watch_fleet(plane.figures)
        lines = metrics.exposition().decode().splitlines()
        for line in (
            'inferhub_fleet_members{state="alive"} 1.0',
            'inferhub_fleet_members{state="suspect"} 0.0',
            'inferhub_fleet_actions_total{action="load"} 1.0',
            'inferhub_fleet_changes_total{change="here"} 1.0',
            'inferhub_fleet_refused_total{reason="invalid_address"} 1.0',
        ):
            assert line in lines
