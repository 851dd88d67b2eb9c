"""An orchestrator over gRPC: what travels, what is refused, and what gateways see while it is away."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from inferhub.core.errors import (
    Conflict,
    Draining,
    EndpointLost,
    InternalError,
    Overloaded,
    SetupError,
    TooLarge,
    UnknownWorker,
)
from inferhub.core.fleet import Deployment, FleetView, Lease, Member, Placement
from inferhub.core.serving import beat_of
from inferhub.testing.plane import OpenPlane, a_worker
from inferhub.transport import control as control_module
from inferhub.transport._pb import orchestrator_pb2 as pb
from inferhub.transport._pb.orchestrator_pb2_grpc import OrchestratorStub
from inferhub.transport.channel import Limits
from inferhub.transport.control import ControlClient
from inferhub.transport.control_server import ControlServer, serve_control

FAST = Limits(control_timeout_s=1.0, silence_s=1.5)


class Net:
    """Servers and clients that are stopped at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, plane: OpenPlane, listen: str = "127.0.0.1:0", **more: Any) -> ControlServer:
        server = await serve_control(plane, listen, **{"limits": FAST, **more})
        self._stack.push_async_callback(server.stop)
        return server

    def client(self, *ports: int | None, **more: Any) -> ControlClient:
        targets = [f"127.0.0.1:{port}" for port in ports]
        client = ControlClient(targets, **{"limits": FAST, "lease_s": 0.5, **more})
        self._stack.push_async_callback(client.close)
        return client

    def stub(self, port: int | None, **more: Any) -> Any:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", **more)
        self._stack.push_async_callback(channel.close)
        return cast("Any", OrchestratorStub)(channel)

    def watch(self, client: ControlClient, holder: str = "g1") -> Watched:
        watched = Watched(client, holder)
        self._stack.push_async_callback(watched.stop)
        return watched


class Watched:
    """Follows a fleet and keeps every view."""

    def __init__(self, client: ControlClient, holder: str) -> None:
        self.views: list[FleetView] = []
        self._task = asyncio.create_task(self._run(client, holder))

    async def _run(self, client: ControlClient, holder: str) -> None:
        async with aclosing(client.watch(holder)) as views:
            async for view in views:
                self.views.append(view)

    async def until(self, condition: Callable[[FleetView], bool]) -> FleetView:
        await until(lambda: bool(self.views) and condition(self.views[-1]))
        return self.views[-1]

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def ids(view: FleetView) -> set[str]:
    return {m.worker.id for m in view.members}


def suspects(view: FleetView) -> set[str]:
    return {m.worker.id for m in view.members if m.is_suspect}


# --- what travels ------------------------------------------------------------------------------


async def test_a_workers_whole_record_its_beats_and_its_leave_travel(net: Net) -> None:
    plane = OpenPlane()
    client = net.client((await net.serve(plane)).port)
    worker = a_worker()
    assert await client.register(worker) == Lease(0.25, 1.25)
    assert plane.view.members == (Member(worker),)
    later = replace(worker, seq=2, at_s=13.5, draining=True)
    await client.heartbeat(beat_of(later))
    assert plane.view.members == (Member(later),)
    await client.leave("w1", worker.incarnation)
    assert plane.left == [("w1", worker.incarnation)]
    with pytest.raises(UnknownWorker):
        await client.heartbeat(beat_of(later))


async def test_errors_come_back_as_what_they_were_and_nothing_foreign(net: Net) -> None:
    plane = OpenPlane()
    client = net.client((await net.serve(plane)).port)
    for failure, kind in (
        (Conflict("Another w1 lives."), Conflict),
        (SetupError("No such weights."), SetupError),
        (ZeroDivisionError("secret"), InternalError),
    ):
        plane.failure = failure
        with pytest.raises(kind) as caught:
            await client.register(a_worker())
        assert "secret" not in str(caught.value)
        with pytest.raises(kind):
            await client.want("g1", ())


async def test_a_want_names_what_is_loaded_and_returns_when_all_is_there(net: Net) -> None:
    plane = OpenPlane()
    plane.loading = ("a#1", "b#1")
    plane.may_finish.clear()
    client = net.client((await net.serve(plane)).port)
    deployments = (Deployment(a_worker().models[0].spec, Placement(2, {"region": "eu"})),)
    told: list[str] = []
    wanting = asyncio.create_task(client.want("g1", deployments, told.append))
    await until(lambda: told == ["a#1", "b#1"])
    # Longer than the silence that a living orchestrator may keep.
    await asyncio.wait([wanting], timeout=FAST.silence_s * 1.5)
    assert not wanting.done(), "it is not loaded yet"
    plane.may_finish.set()
    await wanting
    assert plane.wants == [("g1", deployments)]


async def test_a_want_that_is_given_up_is_given_up_at_the_orchestrator(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = OpenPlane()
    plane.may_finish.clear()
    ended = asyncio.Event()
    original = plane.want

    async def want(*args: Any) -> None:
        try:
            await original(*args)
        finally:
            ended.set()

    monkeypatch.setattr(plane, "want", want)
    client = net.client((await net.serve(plane)).port)
    wanting = asyncio.create_task(client.want("g1", ()))
    await until(lambda: bool(plane.wants))
    wanting.cancel()
    async with asyncio.timeout(30):
        await ended.wait()


async def test_a_view_arrives_whole_and_then_in_steps(net: Net) -> None:
    plane = OpenPlane("one", a_worker("w1"), a_worker("w2"))
    watched = net.watch(net.client((await net.serve(plane)).port))
    assert await watched.until(lambda v: v.revision == 1) == plane.view
    first, second = plane.view.members
    moved = replace(first.worker, seq=9, draining=True)
    changed = replace(second.worker, labels={"region": "us"}, seq=3)
    await plane.show(Member(moved, is_suspect=True), Member(changed), Member(a_worker("w3")))
    assert await watched.until(lambda v: v.revision == 2) == plane.view
    await plane.show(Member(moved), Member(a_worker("w3")))
    assert await watched.until(lambda v: v.revision == 3) == plane.view
    await watched.stop()
    await until(lambda: plane.watchers == 0)


async def test_a_step_carries_only_what_changed(net: Net) -> None:
    plane = OpenPlane("one", a_worker("w1"), a_worker("w2"))
    port = (await net.serve(plane)).port
    steps = aiter(net.stub(port).Watch(pb.WatchRequest(holder="raw")))
    first = await anext(steps)
    assert [m.worker.id for m in first.members] == ["w1", "w2"]
    one, two = plane.view.members
    await plane.show(Member(replace(one.worker, seq=2)), two)
    step = await anext(steps)
    assert (len(step.members), [b.id for b in step.beats], list(step.gone)) == (0, ["w1"], [])
    quiet = await anext(steps)
    assert (quiet.revision, len(quiet.members), len(quiet.beats)) == (2, 0, 0), "only a sign of life"


# --- while an orchestrator is away -------------------------------------------------------------


async def test_the_view_stays_while_nobody_answers_and_wants_are_said_again(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    plane = OpenPlane("one", a_worker("w1"))
    server = await net.serve(plane)
    port, client = server.port, net.client(server.port)
    deployments = (Deployment(a_worker().models[0].spec),)
    await client.want("g1", deployments)
    watched = net.watch(client)
    await watched.until(lambda v: ids(v) == {"w1"})
    await server.stop()
    with pytest.raises(EndpointLost):
        await client.register(a_worker("w9"))
    await until(lambda: "Lost the orchestrator" in caplog.text)
    fresh = OpenPlane("two")
    again = await net.serve(fresh, f"127.0.0.1:{port}")
    shown = await watched.until(lambda v: v.epoch == "two")
    assert (ids(shown), suspects(shown)) == ({"w1"}, {"w1"}), "a restart empties nothing"
    await until(lambda: fresh.wants == [("g1", deployments)])
    await fresh.register(a_worker("w1", seq=7))
    shown = await watched.until(lambda v: not suspects(v))
    assert [m.worker.seq for m in shown.members] == [7]
    assert all(view.members for view in watched.views), "never empty"
    assert caplog.text.count("Lost the orchestrator") == 1
    await again.stop()


async def test_an_outage_is_one_line_however_often_it_is_tried(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    server = await net.serve(OpenPlane("one", a_worker("w1")))
    client = net.client(server.port)
    await client.want("g1", (Deployment(a_worker().models[0].spec),))
    watched = net.watch(client)
    await watched.until(lambda v: ids(v) == {"w1"})
    await server.stop()
    tries = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", server.port or 0):
        await until(lambda: tries >= 4)
    assert len([r for r in caplog.records if r.name == "inferhub.transport.control"]) == 1, caplog.text


async def test_what_is_given_up_during_an_outage_is_not_wanted_again(net: Net) -> None:
    server = await net.serve(OpenPlane("one", a_worker("w1")))
    client = net.client(server.port)
    one = Deployment(a_worker().models[0].spec)
    other = Deployment(replace(one.spec, name="chat#2"))
    await client.want("g1", (one, other))
    watched = net.watch(client)
    await watched.until(lambda v: ids(v) == {"w1"})
    await server.stop()
    with pytest.raises(EndpointLost):
        await client.want("g1", (one,))
    fresh = OpenPlane("two", a_worker("w1"))
    await net.serve(fresh, f"127.0.0.1:{server.port}")
    await until(lambda: bool(fresh.wants))
    assert fresh.wants[0] == ("g1", (one,))


async def test_a_second_look_does_not_end_what_is_said_again(
    net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(control_module, "FIRST_WANT_PAUSE_S", 0.05)
    server = await net.serve(OpenPlane("one", a_worker("w1")))
    client = net.client(server.port)
    await client.want("g1", (Deployment(a_worker().models[0].spec),))
    watched = net.watch(client)
    await watched.until(lambda v: ids(v) == {"w1"})
    await server.stop()
    fresh = OpenPlane("two", a_worker("w1"))
    fresh.may_finish.clear()
    await net.serve(fresh, f"127.0.0.1:{server.port}")
    await until(lambda: len(fresh.wants) == 1)
    async with aclosing(client.watch("g1")) as views:
        await anext(views)
    fresh.failure = SetupError("It has no weights.")
    fresh.may_finish.set()
    await until(lambda: len(fresh.wants) >= 4)
    fresh.failure = None
    await until(lambda: "has loaded what this gateway needs" in caplog.text)
    assert caplog.text.count("It has no weights.") == 1


async def test_a_worker_that_a_fresh_orchestrator_never_hears_of_is_let_go(net: Net) -> None:
    server = await net.serve(OpenPlane("one", a_worker("w1"), a_worker("w2")))
    watched = net.watch(net.client(server.port))
    await watched.until(lambda v: ids(v) == {"w1", "w2"})
    await server.stop()
    await net.serve(OpenPlane("two", a_worker("w2")), f"127.0.0.1:{server.port}")
    await watched.until(lambda v: ids(v) == {"w1", "w2"} and suspects(v) == {"w1"})
    await watched.until(lambda v: ids(v) == {"w2"})


async def test_the_next_orchestrator_is_asked_and_then_first(net: Net) -> None:
    first, second = OpenPlane("one", a_worker("w1")), OpenPlane("one", a_worker("w1"))
    server = await net.serve(first)
    client = net.client(server.port, (await net.serve(second)).port)
    watched = net.watch(client)
    await watched.until(lambda v: v.epoch == "one")
    await client.register(a_worker("w2"))
    assert len(first.view.members) == 2
    await server.stop()
    await client.register(a_worker("w3"))
    await until(lambda: second.watchers == 1)
    assert ids(second.view) == {"w1", "w3"}
    await watched.until(lambda v: "w3" in ids(v))


async def test_one_that_is_leaving_or_full_is_left_for_the_next(net: Net) -> None:
    first, second = OpenPlane(), OpenPlane()
    client = net.client((await net.serve(first)).port, (await net.serve(second)).port)
    for failure in (Draining(), Overloaded()):
        first.failure = failure
        await client.register(a_worker())
    assert ids(second.view) == {"w1"}
    second.failure = Draining()
    with pytest.raises((Draining, Overloaded)):
        await client.register(a_worker())


async def test_nobody_there_is_endpoint_lost_soon(net: Net) -> None:
    client = net.client(1)
    with pytest.raises(EndpointLost):
        await client.register(a_worker())
    with pytest.raises(EndpointLost):
        await client.want("g1", ())
    await client.close()
    with pytest.raises(EndpointLost):
        await client.register(a_worker())
    with pytest.raises(SetupError, match="--orchestrator"):
        ControlClient([])


_FROZEN = """
import asyncio
from inferhub.testing.plane import OpenPlane, a_worker
from inferhub.transport.control_server import serve_control
async def main():
    server = await serve_control(OpenPlane("frozen", a_worker("w1")), "127.0.0.1:0")
    print(server.port, flush=True)
    await server.wait()
asyncio.run(main())
"""


async def test_a_frozen_orchestrator_is_left_for_the_next(net: Net) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FROZEN, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        port = int(await asyncio.wait_for(process.stdout.readline(), 60))
        second = OpenPlane("second")
        client = net.client(port, (await net.serve(second)).port)
        watched = net.watch(client)
        await watched.until(lambda v: v.epoch == "frozen")
        os.kill(process.pid, signal.SIGSTOP)
        async with asyncio.timeout(30):
            assert await client.register(a_worker("w2")) == Lease(0.25, 1.25)
        shown = await watched.until(lambda v: v.epoch == "second")
        assert "w1" in ids(shown), "no empty view because of a frozen process"
    finally:
        process.kill()
        await process.wait()


# --- what is refused ---------------------------------------------------------------------------


async def test_the_join_token_is_required_and_its_refusals_are_logged_without_it(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    plane = OpenPlane("one", a_worker("w1"))
    port = (await net.serve(plane, token="right-token")).port
    for token in (None, "wrong-token"):
        client = net.client(port, token=token)
        for asked in (client.register(a_worker("w2")), client.want("g1", ())):
            with pytest.raises(SetupError, match="join token"):
                await asked
    watched = net.watch(net.client(port))
    await until(lambda: "Lost the orchestrator" in caplog.text)
    assert not watched.views
    assert ids(plane.view) == {"w1"}
    assert not plane.wants
    assert "Refused ipv4:127.0.0.1:" in caplog.text
    assert caplog.text.count("join token missing or wrong (") == 1, "logged, but not each time"
    assert "right-token" not in caplog.text
    assert "wrong-token" not in caplog.text
    right = net.client(port, token="right-token")
    await right.register(a_worker("w2"))
    await net.watch(right).until(lambda v: ids(v) == {"w1", "w2"})


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_an_open_door_to_the_network_is_refused(net: Net, listen: str) -> None:
    with pytest.raises(SetupError, match="worker_token_file"):
        await net.serve(OpenPlane(), listen)


async def test_another_protocol_is_refused_by_name(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    plane = OpenPlane()
    stub = net.stub((await net.serve(plane)).port)
    reply = await stub.Register(pb.RegisterRequest(protocol=7))
    assert "same release" in reply.error.message
    assert "Refused a worker at ipv4:127.0.0.1:" in caplog.text
    assert not plane.view.members


async def test_an_oversize_message_is_refused_and_nobody_else_notices(net: Net) -> None:
    plane = OpenPlane("one", a_worker("w1"))
    port = (await net.serve(plane)).port
    client = net.client(port)
    with pytest.raises(TooLarge):
        await client.register(a_worker("w2", version="x" * 5 * 1024 * 1024))
    assert ids(plane.view) == {"w1"}
    await client.register(a_worker("w3"))


async def test_garbage_is_refused_and_nobody_else_notices(net: Net) -> None:
    plane = OpenPlane("one", a_worker("w1"))
    port = (await net.serve(plane)).port
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    for method in ("Register", "Heartbeat", "Leave", "Want", "Nonsense"):
        call: Any = channel.unary_unary(f"/inferhub.orchestrator.v1.Orchestrator/{method}")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"\xff\xff\xff garbage", timeout=10)
    await channel.close()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(os.urandom(4096))
    writer.close()
    assert ids(plane.view) == {"w1"}
    await net.client(port).register(a_worker("w3"))


async def test_more_watchers_than_allowed_are_refused(net: Net) -> None:
    plane = OpenPlane("one", a_worker("w1"))
    port = (await net.serve(plane, limits=replace(FAST, max_watchers=1))).port
    watched = net.watch(net.client(port), "g1")
    await watched.until(lambda v: ids(v) == {"w1"})
    step = await anext(aiter(net.stub(port).Watch(pb.WatchRequest(holder="g2"))))
    assert step.error.code == "overloaded"
    await watched.stop()
    await until(lambda: plane.watchers == 0)
    await net.watch(net.client(port), "g2").until(lambda v: ids(v) == {"w1"})


async def test_a_watcher_that_does_not_read_is_hung_up_on(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plane = OpenPlane("one")
    server = await net.serve(plane)
    # Never read, over a window that is soon full.
    window = ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)
    rpc = net.stub(server.port, options=window).Watch(pb.WatchRequest(holder="deaf"))
    await until(lambda: plane.watchers == 1)
    round_ = 0
    async with asyncio.timeout(60):
        while plane.watchers:
            round_ += 1
            await plane.show(Member(a_worker("w1", version=f"{round_}" + "x" * 200_000)))
            await asyncio.sleep(0.005)
    assert "does not read" in caplog.text
    rpc.cancel()
