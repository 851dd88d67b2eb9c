"""Applying specs: all or nothing, old beside new, workers that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, SetupError
from inferhub.core.fleet import deployment_of
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.core.traffic import alias
from inferhub.gateway.fleet import Fleet
from inferhub.orchestrator.service import Orchestrator
from inferhub.settings.spec import Spec
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.base import Transport
from inferhub.transport.local import LocalTransport
from inferhub.transport.reach import Reach
from inferhub.worker.host import Host
from inferhub.worker.service import Worker


def new_worker(name: str) -> Worker:
    return Worker(name, Host(resolve=lambda _: pytest.fail("echo has no weights")), tuple)


@asynccontextmanager
async def running_fleet(*workers: Transport) -> AsyncIterator[Fleet]:
    """A gateway's fleet over an orchestrator of its own that polls these workers."""
    near = {f"w{n}": worker for n, worker in enumerate(workers)}
    reach = Reach(fixed={**near, "providers": LocalTransport(new_worker("providers"))})
    engines, providers = (
        Orchestrator(reach=reach, polled=polled, poll_s=0.01, heartbeat_s=0.1, lease_s=1.0, drain_grace_s=5.0)
        for polled in (tuple(near), ("providers",))
    )
    fleet = Fleet(
        engines=engines, providers=providers, reach=reach, is_remote=lambda _: False, expected=tuple(near)
    )
    services = [asyncio.create_task(service.run()) for service in (engines, providers, fleet)]
    try:
        yield fleet
    finally:
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)
        await engines.close()
        await providers.close()
        await fleet.close()


def spec(*models: ModelSpec, **routes: str) -> Spec:
    return Spec(models=models, routes=tuple(alias(name, model) for name, model in routes.items()))


ECHO = ModelSpec("echo", "echo")
SLOW = ModelSpec("echo", "echo", options={"gap_s": 0.05})
BAD = ModelSpec("bad", "echo", options={"nonsense": 1})


async def ask(fleet: Fleet, name: str) -> Collector:
    emit = Collector()
    _, endpoints = fleet.directory().resolve(name)
    call = make_call("chat", endpoints[0].model.spec.name, messages=[{"role": "user", "content": "a b c"}])
    await endpoints[0].infer(call, emit)
    return emit


async def test_models_and_routes_become_endpoints() -> None:
    async with running_fleet(LocalTransport(new_worker("w"))) as fleet:
        await fleet.apply(spec(ECHO, alias="echo"))
        assert fleet.directory().names == ("alias", "echo")
        assert fleet.readiness()["ready"] is True
        assert len((await ask(fleet, "alias")).chunks) == 5


async def test_a_spec_that_cannot_be_loaded_changes_nothing() -> None:
    worker = new_worker("w")
    async with running_fleet(LocalTransport(worker)) as fleet:
        await fleet.apply(spec(ECHO))
        with pytest.raises(SetupError, match="nonsense"):
            await fleet.apply(spec(ECHO, ModelSpec("new", "echo"), BAD))
        assert fleet.directory().names == ("echo",)
        assert [m.spec.name for m in (await worker.status()).models] == [deployment_of(ECHO).name]


async def test_a_changed_model_is_swapped_while_the_old_one_finishes() -> None:
    worker = new_worker("w")
    async with running_fleet(LocalTransport(worker)) as fleet:
        await fleet.apply(spec(SLOW))
        running = asyncio.create_task(ask(fleet, "echo"))
        while not (await worker.status()).models[0].running:
            await asyncio.sleep(0)
        await fleet.apply(spec(ECHO))
        assert [e.model.spec.options for e in fleet.directory().endpoints["echo"]] == [{}]
        assert len((await running).chunks) == 5
        async with asyncio.timeout(10):
            while len((await worker.status()).models) > 1:
                await asyncio.sleep(0.01)
        assert (await worker.status()).models[0].spec == replace(deployment_of(ECHO), load="start")


async def test_a_busy_model_that_is_wanted_again_is_not_interrupted() -> None:
    worker = new_worker("w")
    async with running_fleet(LocalTransport(worker)) as fleet:
        await fleet.apply(spec(SLOW))
        running = asyncio.create_task(ask(fleet, "echo"))
        while not (await worker.status()).models[0].running:
            await asyncio.sleep(0)
        await fleet.apply(spec())
        await fleet.apply(spec(SLOW))
        assert len((await running).chunks) == 5
        assert len((await ask(fleet, "echo")).chunks) == 5


class Flapping:
    """A worker behind a cable that can be pulled."""

    def __init__(self) -> None:
        self.is_there = False
        self.worker = new_worker("w")

    async def status(self) -> WorkerStatus:
        self._check()
        return await self.worker.status()

    async def load(self, spec: ModelSpec) -> ModelStatus:
        self._check()
        return await self.worker.load(spec)

    async def unload(self, name: str) -> None:
        # As over a network: the worker acts on it later.
        await asyncio.sleep(0.05)
        await self.worker.unload(name)

    async def infer(self, call: Call, emit: Emit) -> None:
        await self.worker.infer(call, emit)

    async def drain(self, grace_s: float) -> None:
        await self.worker.drain(grace_s)

    async def close(self) -> None:
        await self.worker.close()

    def _check(self) -> None:
        if not self.is_there:
            raise EndpointLost


async def test_a_worker_that_comes_late_is_given_its_models() -> None:
    cable = Flapping()
    async with running_fleet(cable) as fleet:
        await fleet.apply(spec(ECHO))
        assert fleet.readiness()["ready"] is False
        cable.is_there = True
        async with asyncio.timeout(10):
            while not fleet.readiness()["ready"]:
                await asyncio.sleep(0.01)
        cable.is_there = False
        async with asyncio.timeout(10):
            while fleet.readiness()["ready"]:
                await asyncio.sleep(0.01)


async def test_a_model_that_is_wanted_again_while_it_is_unloaded_comes_back() -> None:
    cable = Flapping()
    cable.is_there = True
    async with running_fleet(cable) as fleet:
        more = ModelSpec("more", "echo")
        await fleet.apply(spec(ECHO, more))
        await fleet.apply(spec(ECHO))
        await fleet.apply(spec(ECHO, more))
        # Longer than an unload takes: one that was still under way would have had its effect.
        await asyncio.sleep(0.1)
        await fleet.refresh()
        assert fleet.readiness()["ready"] is True
