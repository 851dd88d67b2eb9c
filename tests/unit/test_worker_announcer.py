"""A worker's word to its orchestrators: real ones, over real gRPC, that die, freeze, refuse and come back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from inferhub.core.errors import Conflict, SetupError
from inferhub.core.models import ModelSpec
from inferhub.core.serving import DeviceStatus, WorkerStatus
from inferhub.orchestrator.service import Orchestrator
from inferhub.testing.plane import OpenPlane
from inferhub.transport.channel import Limits
from inferhub.transport.control import ControlClient
from inferhub.transport.control_server import ControlServer, serve_control
from inferhub.worker import announcer as announcer_module
from inferhub.worker.announcer import Announcer
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

LIMITS = Limits(control_timeout_s=1.0)


class Site:
    """Workers that announce themselves and orchestrators that hear them; all stopped at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def orchestrator(self, listen: str = "127.0.0.1:0", **more: Any) -> tuple[Orchestrator, int]:
        terms = {"heartbeat_s": 0.1, "lease_s": 30.0, **more}
        plane = Orchestrator(reach=_nobody_reached, **terms)
        server = await self.serve(plane, listen)
        running = asyncio.create_task(plane.run())
        self._stack.push_async_callback(plane.close)
        self._stack.push_async_callback(_ended, running)
        assert server.port
        return plane, server.port

    async def serve(self, plane: Any, listen: str = "127.0.0.1:0") -> ControlServer:
        server = await serve_control(plane, listen, limits=LIMITS)
        self._stack.push_async_callback(server.stop)
        return server

    async def worker(self, id_: str = "w1", **more: Any) -> Worker:
        worker = Worker(
            id_,
            Host(Path, isolation="never"),
            lambda: (DeviceStatus("cpu", "CPU", 100, 50),),
            **{"address": f"{id_}:50051", "labels": {"region": "eu"}, **more},
        )
        self._stack.push_async_callback(worker.close)
        return worker

    def announce(self, worker: Worker, *ports: int) -> tuple[Announcer, asyncio.Task[None]]:
        client = ControlClient([f"127.0.0.1:{port}" for port in ports], limits=LIMITS)
        self._stack.push_async_callback(client.close)
        announcer = Announcer(client, worker.status)
        worker.on_change = announcer.notice
        running = asyncio.create_task(announcer.run())
        self._stack.push_async_callback(_ended, running)
        return announcer, running


def _nobody_reached(address: str) -> Any:
    raise KeyError(address)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        yield Site(stack)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def members(plane: Orchestrator | OpenPlane) -> dict[str, WorkerStatus]:
    view = plane.view if isinstance(plane, OpenPlane) else plane.view()
    return {m.worker.id: m.worker for m in view.members}


async def test_a_worker_registers_beats_and_leaves(site: Site) -> None:
    plane, port = await site.orchestrator()
    worker = await site.worker()
    announcer, running = site.announce(worker, port)
    await until(lambda: "w1" in members(plane))
    known = members(plane)["w1"]
    assert (known.address, known.labels, known.incarnation) == (
        "w1:50051",
        {"region": "eu"},
        worker.incarnation,
    )
    assert known.version
    # The orchestrator knows it before its answer is here.
    await until(lambda: announcer.is_registered)
    first = known
    await until(lambda: members(plane)["w1"].seq >= first.seq + 3)
    assert members(plane)["w1"].at_s > first.at_s
    await _ended(running)
    assert not members(plane), "it said that it leaves"
    assert not announcer.is_registered


async def test_a_new_model_is_told_at_once_and_not_at_the_next_beat(site: Site) -> None:
    plane, port = await site.orchestrator(heartbeat_s=3600.0, lease_s=7200.0)
    worker = await site.worker()
    site.announce(worker, port)
    await until(lambda: "w1" in members(plane))
    await worker.load(ModelSpec("echo", "echo"))
    await until(lambda: [m.spec.name for m in members(plane)["w1"].models] == ["echo"])
    await worker.unload("echo")
    await until(lambda: not members(plane)["w1"].models)
    draining = asyncio.create_task(worker.drain(0.0))
    await until(lambda: members(plane)["w1"].draining)
    await draining


async def test_a_restarted_orchestrator_knows_everybody_again(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    old = OpenPlane()
    server = await site.serve(old)
    worker = await site.worker()
    site.announce(worker, server.port or 0)
    await until(lambda: "w1" in members(old))
    await server.stop()
    await until(lambda: "No orchestrator hears this worker" in caplog.text)
    plane, _ = await site.orchestrator(f"127.0.0.1:{server.port}")
    await until(lambda: "w1" in members(plane))
    assert caplog.text.count("No orchestrator hears") == 1, "one line an outage"


async def test_an_orchestrator_that_forgot_is_told_everything(site: Site) -> None:
    plane = OpenPlane()
    server = await site.serve(plane)
    site.announce(await site.worker(), server.port or 0)
    await until(lambda: "w1" in members(plane))
    await plane.show()
    await until(lambda: "w1" in members(plane))


async def test_a_frozen_orchestrator_is_left_for_another(site: Site) -> None:
    script = (
        "import asyncio\n"
        "from inferhub.testing.plane import OpenPlane\n"
        "from inferhub.transport.control_server import serve_control\n"
        "async def main():\n"
        "    server = await serve_control(OpenPlane(), '127.0.0.1:0')\n"
        "    print(server.port, flush=True)\n"
        "    await server.wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        second, other = await site.orchestrator()
        announcer, _ = site.announce(await site.worker(), port, other)
        await until(lambda: announcer.is_registered)
        assert not members(second)
        os.kill(process.pid, signal.SIGSTOP)
        await until(lambda: "w1" in members(second))
        seq = members(second)["w1"].seq
        await until(lambda: members(second)["w1"].seq > seq)
    finally:
        process.kill()
        await process.wait()


async def test_a_second_worker_of_one_name_is_refused_with_the_reason(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer_module, "REFUSED_PAUSE_S", 0.05)
    plane, port = await site.orchestrator()
    _, first = site.announce(await site.worker("w1"), port)
    await until(lambda: "w1" in members(plane))
    second, _ = site.announce(await site.worker("w1", address="elsewhere:50051"), port)
    await until(lambda: "An orchestrator refused this worker" in caplog.text)
    assert not second.is_registered
    assert members(plane)["w1"].address == "w1:50051"
    await _ended(first)
    await until(lambda: members(plane).get("w1", None) is not None)
    assert members(plane)["w1"].address == "elsewhere:50051", "it tried again, slowly"


async def test_a_refusal_that_lasts_is_said_once(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(announcer_module, "REFUSED_PAUSE_S", 0.01)
    plane = OpenPlane()
    plane.failure = SetupError("The token is another one.")
    server = await site.serve(plane)
    site.announce(await site.worker(), server.port or 0)
    await until(lambda: plane.refused >= 5)
    plane.failure = None
    await until(lambda: "heard again" in caplog.text)
    assert caplog.text.count("The token is another one.") == 1


async def test_a_beat_that_is_refused_as_old_leads_to_a_new_registration(site: Site) -> None:
    plane = OpenPlane()
    server = await site.serve(plane)
    site.announce(await site.worker(), server.port or 0)
    await until(lambda: len(plane.beats) > 0)
    known = plane.registrations
    plane.failure = Conflict("old")
    await until(lambda: plane.refused >= 2)
    plane.failure = None
    await until(lambda: plane.registrations > known)


async def test_a_failing_status_is_logged_and_asked_again(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(announcer_module, "REFUSED_PAUSE_S", 0.01)
    plane = OpenPlane()
    worker = await site.worker()
    asked = 0

    async def status() -> WorkerStatus:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OSError("the driver says no")
        return await worker.status()

    running = asyncio.create_task(Announcer(plane, status).run())
    try:
        await until(lambda: "w1" in members(plane))
    finally:
        await _ended(running)
    assert "Unexpected failure while announcing" in caplog.text
    assert plane.left == [("w1", worker.incarnation)]
