"""What only the gRPC transport has: ports, tokens, health, coalescing, flow control, lost peers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished
from inferhub.core.errors import (
    DeadlineExceeded,
    Draining,
    EndpointLost,
    InferHubError,
    InternalError,
    NoEndpoint,
    Overloaded,
    PortTaken,
    SetupError,
    TooLarge,
    UpstreamFailed,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.transport import coalesce
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport._pb.worker_pb2_grpc import WorkerStub
from inferhub.transport.channel import Limits
from inferhub.transport.coalesce import Coalescer
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import WorkerServer, serve

CODEC = Codec(modalities())
PIECE = Delta(ChatDelta(content="x"))
Answer = Callable[[Call, Emit], Awaitable[None]]


class Peer:
    """A worker with no models that answers calls with one coroutine function."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.is_draining = False
        self.cancelled = asyncio.Event()

    async def infer(self, call: Call, emit: Emit) -> None:
        try:
            await self.answer(call, emit)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def load(self, spec: ModelSpec) -> ModelStatus:
        raise ZeroDivisionError("secret detail")

    async def unload(self, name: str) -> None: ...

    async def status(self) -> WorkerStatus:
        return WorkerStatus("peer", (), draining=self.is_draining)

    async def drain(self, grace_s: float) -> None:
        self.is_draining = True

    async def close(self) -> None: ...


class Net:
    """Servers and clients that are stopped at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def serve(self, peer: Peer, listen: str = "127.0.0.1:0", **more: Any) -> WorkerServer:
        server = await serve(peer, listen, CODEC, **more)
        self._stack.push_async_callback(server.stop, 0.0)
        return server

    def connect(self, target: str | int | None, **more: Any) -> GrpcTransport:
        transport = GrpcTransport(target if isinstance(target, str) else f"127.0.0.1:{target}", CODEC, **more)
        self._stack.push_async_callback(transport.close)
        return transport

    def channel(self, port: int | None) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self._stack.push_async_callback(channel.close)
        return channel

    async def pair(self, answer: Answer, **more: Any) -> tuple[Peer, GrpcTransport]:
        peer = Peer(answer)
        return peer, self.connect((await self.serve(peer, **more)).port, **more)


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)


async def hang(call: Call, emit: Emit) -> None:
    await emit(PIECE)
    await asyncio.Event().wait()


async def one(call: Call, emit: Emit) -> None:
    await emit(PIECE)
    await emit(Finished(Usage()))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


# --- addresses ---------------------------------------------------------------------------------


async def test_two_servers_on_one_port_are_refused_and_a_second_port_works(net: Net) -> None:
    first = await net.serve(Peer(one))
    for listen in (f"127.0.0.1:{first.port}", f"localhost:{first.port}", f"0.0.0.0:{first.port}"):
        with pytest.raises(PortTaken, match=str(first.port)):
            await net.serve(Peer(one), listen)
    with socket.socket() as sharer:
        sharer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            sharer.bind(("127.0.0.1", first.port))
    second = await net.serve(Peer(one))
    assert second.port != first.port
    await net.connect(second.port).infer(make_call("chat"), Collector())


async def test_a_unix_socket_works_is_not_stolen_and_its_remains_are_no_obstacle(
    net: Net, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("s") / "w"
    with socket.socket(socket.AF_UNIX) as remains:
        remains.bind(str(path))
    server = await net.serve(Peer(one), f"unix:{path}")
    assert server.port is None
    assert stat.S_ISSOCK(path.stat().st_mode)
    got = Collector()
    await net.connect(f"unix:{path}").infer(make_call("chat"), got)
    assert len(got.chunks) == 2
    with pytest.raises(PortTaken, match="already listens"):
        await net.serve(Peer(one), f"unix:{path}")


@pytest.mark.parametrize(
    "listen",
    [
        "nonsense",
        ":80",
        "127.0.0.1:http",
        "no-such-host.invalid:0",
        "unix:/nowhere/at/all",
        "unix:/" + "x" * 120,
    ],
)
async def test_an_impossible_address_is_a_setup_error(net: Net, listen: str) -> None:
    with pytest.raises(SetupError):
        await net.serve(Peer(one), listen)


async def test_nobody_there_is_endpoint_lost(net: Net) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    transport = net.connect(port)
    with pytest.raises(EndpointLost):
        await transport.infer(make_call("chat"), Collector())
    with pytest.raises(EndpointLost, match=str(port)):
        await transport.status()


# --- the join token ----------------------------------------------------------------------------


async def test_the_join_token_is_required_everywhere_but_for_health(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await net.serve(Peer(one), token="right-token")
    for token in (None, "wrong-token"):
        transport = net.connect(server.port, token=token)
        with pytest.raises(SetupError, match="join token"):
            await transport.status()
        with pytest.raises(NoEndpoint):
            await transport.infer(make_call("chat"), Collector())
    right = net.connect(server.port, token="right-token")
    assert (await right.status()).id == "peer"
    await right.infer(make_call("chat"), Collector())
    assert await health_of(net, server) == health_pb2.HealthCheckResponse.SERVING
    assert "right-token" not in caplog.text


# --- health and stopping -----------------------------------------------------------------------


async def health_of(net: Net, server: WorkerServer, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(net.channel(server.port))
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(reply.status)


async def test_health_is_not_serving_from_the_start_of_a_drain(net: Net) -> None:
    server = await net.serve(Peer(one))
    for service in ("", "inferhub.worker.v1.Worker"):
        assert await health_of(net, server, service) == health_pb2.HealthCheckResponse.SERVING
    transport = net.connect(server.port)
    await transport.drain(0.0)
    for service in ("", "inferhub.worker.v1.Worker"):
        assert await health_of(net, server, service) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await transport.status()).draining


async def test_a_server_that_stops_is_endpoint_lost_not_a_cancelled_task(net: Net) -> None:
    server = await net.serve(Peer(hang))
    got = Collector()
    call = asyncio.create_task(net.connect(server.port).infer(make_call("chat", stream=True), got))
    await until(lambda: len(got.chunks) == 1)
    await server.stop(0.0)
    with pytest.raises(EndpointLost):
        await call


async def test_a_client_that_closes_ends_its_calls_as_endpoint_lost(net: Net) -> None:
    peer, transport = await net.pair(hang)
    got = Collector()
    call = asyncio.create_task(transport.infer(make_call("chat", stream=True), got))
    await until(lambda: len(got.chunks) == 1)
    await transport.close()
    with pytest.raises(EndpointLost):
        await call
    await asyncio.wait_for(peer.cancelled.wait(), 30)
    with pytest.raises(EndpointLost):
        await transport.infer(make_call("chat"), Collector())
    with pytest.raises(EndpointLost):
        await transport.status()


async def test_a_worker_that_ends_its_connections_fails_no_call(net: Net) -> None:
    """Servers behind some networks close connections of a certain age, politely: GOAWAY, then grace."""
    ages = (("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 60_000))
    may_end = asyncio.Event()
    streams = 0

    async def answer(call: Call, emit: Emit) -> None:
        await emit(PIECE)
        if call.stream:
            await may_end.wait()
        await emit(Finished(Usage()))

    async def stream() -> None:
        nonlocal streams
        await transport.infer(make_call("chat", stream=True), Collector())
        streams += 1

    server = await net.serve(Peer(answer), options=ages)
    transport = net.connect(server.port)
    connections: set[int] = set()
    async with asyncio.TaskGroup() as group:
        long_ones = [group.create_task(stream()) for _ in range(5)]
        async with asyncio.timeout(120):
            while len(connections) < 6:
                # Every one of these must succeed, whichever connection it meets.
                await asyncio.gather(*(transport.infer(make_call("chat"), Collector()) for _ in range(8)))
                connections |= open_connections(server.port)
        assert not any(task.done() for task in long_ones)
        may_end.set()
    assert streams == 5, "calls under way end on the connection they began on"


def open_connections(port: int | None) -> set[int]:
    """By the port of the client's side."""
    found = psutil.Process().net_connections(kind="tcp")
    return {c.laddr.port for c in found if c.raddr and c.raddr.port == port}


# --- cancellation, deadlines, failures ---------------------------------------------------------


@pytest.mark.parametrize("is_stream", [True, False])
async def test_cancelling_the_task_cancels_the_workers_task(net: Net, is_stream: bool) -> None:
    peer, transport = await net.pair(hang)
    got = Collector()
    call = asyncio.create_task(transport.infer(make_call("chat", stream=is_stream), got))
    await until(lambda: len(got.chunks) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(peer.cancelled.wait(), 30)


async def test_the_deadline_and_the_trace_travel(net: Net) -> None:
    seen: list[Call] = []

    async def look(call: Call, emit: Emit) -> None:
        seen.append(call)
        await one(call, emit)

    _, transport = await net.pair(look)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for traceparent, expected in [(trace, trace), (None, None), ("é\n", None)]:
        call = replace(make_call("chat", timeout_s=100), traceparent=traceparent)
        await transport.infer(call, Collector())
        assert seen[-1] == replace(call, traceparent=expected, deadline_s=seen[-1].deadline_s)
        assert seen[-1].deadline_s == pytest.approx(call.deadline_s, abs=30)


async def test_a_worker_that_ignores_the_deadline_is_left(net: Net) -> None:
    peer, transport = await net.pair(hang)
    got = Collector()
    with pytest.raises(DeadlineExceeded):
        await transport.infer(make_call("chat", stream=True, timeout_s=1.0), got)
    if got.chunks:  # a machine that is very slow may not get as far
        await asyncio.wait_for(peer.cancelled.wait(), 30)


async def test_a_stream_without_its_end_is_endpoint_lost(net: Net) -> None:
    async def stops(call: Call, emit: Emit) -> None:
        await emit(PIECE)

    _, transport = await net.pair(stops)
    got = Collector()
    with pytest.raises(EndpointLost, match="before the end"):
        await transport.infer(make_call("chat", stream=True), got)
    assert got.chunks == [PIECE]


async def test_no_traceback_and_no_foreign_text_reaches_the_peer(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(call: Call, emit: Emit) -> None:
        raise ZeroDivisionError("secret detail")

    _, transport = await net.pair(breaks)
    for ask in (transport.infer(make_call("chat"), Collector()), transport.load(ModelSpec("m", "x"))):
        with pytest.raises(InternalError) as failure:
            await ask
        assert failure.value.message == InternalError().message
    assert caplog.text.count("ZeroDivisionError: secret detail") == 2


async def test_messages_over_the_limit_are_refused_on_both_ways(net: Net) -> None:
    async def big(call: Call, emit: Emit) -> None:
        await emit(PIECE)
        await emit(Delta(ChatDelta(content="x" * 300_000)))

    _, transport = await net.pair(big, limits=Limits(max_message_bytes=100_000))
    got = Collector()
    with pytest.raises(UpstreamFailed, match="100000"):
        await transport.infer(make_call("chat", stream=True), got)
    with pytest.raises(TooLarge):
        await transport.infer(make_call("chat", user="x" * 300_000), Collector())
    await transport.status()


async def test_more_calls_than_the_server_answers_are_overloaded(net: Net) -> None:
    _, transport = await net.pair(hang, limits=Limits(max_calls=1))
    got = Collector()
    call = asyncio.create_task(transport.infer(make_call("chat", stream=True), got))
    await until(lambda: len(got.chunks) == 1)
    with pytest.raises(Overloaded):
        await transport.infer(make_call("chat"), Collector())
    call.cancel()
    await asyncio.wait([call])


# --- a peer in another process -----------------------------------------------------------------

PEER = """
import asyncio, sys
from inferhub.backends.echo import Echo
from inferhub.core.models import ModelSpec
from inferhub.modalities import modalities
from inferhub.transport.coalesce import Coalescer
from inferhub.transport.codec import Codec
from inferhub.transport.grpc_server import serve
from inferhub.worker.host import Host
from inferhub.worker.service import Worker
from pathlib import Path

async def main():
    worker = Worker("far", Host(Path), tuple)
    await worker.load(ModelSpec("m", "echo", options={"gap_s": 0.05}))
    server = await serve(worker, f"127.0.0.1:{sys.argv[1]}", Codec(modalities()))
    print(server.port, flush=True)
    await server.wait()

asyncio.run(main())
"""


async def far_worker(stack: AsyncExitStack, port: int = 0) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PEER, str(port), stdout=asyncio.subprocess.PIPE
    )

    async def end() -> None:
        if process.returncode is None:
            process.kill()
        await process.communicate()

    stack.push_async_callback(end)
    assert process.stdout
    return process, int(await process.stdout.readline())


LONG = [{"role": "user", "content": "word " * 1000}]


async def test_a_killed_worker_is_endpoint_lost_and_found_again(net: Net) -> None:
    async with AsyncExitStack() as stack:
        process, port = await far_worker(stack)
        transport = net.connect(port)
        got = Collector()
        call = asyncio.create_task(transport.infer(make_call("chat", stream=True, messages=LONG), got))
        await until(lambda: len(got.chunks) >= 3)
        process.kill()
        with pytest.raises(EndpointLost):
            await call
        await process.wait()
        await far_worker(stack, port)
        async with asyncio.timeout(60):
            while True:
                try:
                    await transport.infer(make_call("chat"), Collector())
                    break
                except EndpointLost:
                    await asyncio.sleep(0.05)


async def test_a_frozen_worker_costs_no_more_than_the_deadline(net: Net) -> None:
    async with AsyncExitStack() as stack:
        process, port = await far_worker(stack)
        transport = net.connect(port, limits=Limits(status_timeout_s=0.3))
        await transport.infer(make_call("chat"), Collector())
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            await transport.infer(make_call("chat", timeout_s=0.3), Collector())
        with pytest.raises(DeadlineExceeded):
            await transport.status()


# --- coalescing and flow control ---------------------------------------------------------------


async def messages(net: Net, answer: Answer, *, is_stream: bool = True) -> list[pb.InferReply]:
    """The raw messages that a call's answer takes on a real connection."""
    stub: Any = WorkerStub(net.channel((await net.serve(Peer(answer))).port))  # type: ignore[no-untyped-call]
    request = CODEC.encode_call(make_call("chat", stream=is_stream))
    return [reply async for reply in stub.Infer(request, timeout=60)]


@pytest.fixture
def long_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that no slow machine ends it: what is sent, is sent for another reason."""
    monkeypatch.setattr(coalesce, "WINDOW_S", 3600.0)


@pytest.mark.usefixtures("long_window")
async def test_a_fast_stream_shares_messages_and_its_first_chunk_goes_alone(net: Net) -> None:
    async def fast(call: Call, emit: Emit) -> None:
        for _ in range(801):
            await emit(PIECE)
        await emit(Finished(Usage()))

    sizes = [len(reply.chunks) for reply in await messages(net, fast)]
    assert sizes == [1, *[32] * 25, 1]


@pytest.mark.usefixtures("long_window")
async def test_large_chunks_do_not_wait_for_company(net: Net) -> None:
    async def large(call: Call, emit: Emit) -> None:
        for size in (1, 10, 100_000, 10, 60_000, 60_000):
            await emit(Delta(ChatDelta(content="x" * size)))
        await emit(Finished(Usage()))

    sizes = [len(reply.chunks) for reply in await messages(net, large)]
    assert sizes == [1, 1, 1, 2, 2]


async def test_sparse_chunks_are_never_held_back() -> None:
    written: list[int] = []

    async def write(reply: pb.InferReply) -> None:
        written.append(len(reply.chunks))

    answer = Coalescer(write, CODEC.encode_chunk, is_stream=True, max_message_bytes=1000)
    for number in range(1, 5):
        await answer.emit(PIECE)
        assert written == [1] * number
        await asyncio.sleep(2 * coalesce.WINDOW_S)
    await answer.close()


async def test_a_chunk_that_waits_for_company_is_sent_after_the_window(net: Net) -> None:
    async def two_then_nothing(call: Call, emit: Emit) -> None:
        await emit(PIECE)
        await emit(PIECE)
        await asyncio.Event().wait()

    for is_stream in (True, False):
        _, transport = await net.pair(two_then_nothing)
        got = Collector()
        call = asyncio.create_task(transport.infer(make_call("chat", stream=is_stream), got))
        await until(lambda got=got: len(got.chunks) == 2)  # type: ignore[misc]
        call.cancel()
        await asyncio.wait([call])


@pytest.mark.usefixtures("long_window")
async def test_an_answer_that_is_not_streamed_takes_one_message(net: Net) -> None:
    assert [len(reply.chunks) for reply in await messages(net, one, is_stream=False)] == [2]


@pytest.mark.usefixtures("long_window")
async def test_an_error_flushes_the_chunks_before_it(net: Net) -> None:
    async def fails(call: Call, emit: Emit) -> None:
        for _ in range(3):
            await emit(PIECE)
        raise Draining

    got = await messages(net, fails)
    assert [(len(reply.chunks), reply.HasField("error")) for reply in got] == [(1, False), (2, True)]


async def test_a_slow_client_stops_the_engine_instead_of_filling_memory(net: Net) -> None:
    piece, count, emitted = Delta(ChatDelta(content="x" * 100_000)), 2_000, 0

    async def flood(call: Call, emit: Emit) -> None:
        nonlocal emitted
        for _ in range(count):
            await emit(piece)
            emitted += 1
        await emit(Finished(Usage()))

    may_read, received = asyncio.Event(), 0

    async def slow(chunk: Chunk) -> None:
        nonlocal received
        received += 1
        await may_read.wait()

    _, transport = await net.pair(flood)
    call = asyncio.create_task(transport.infer(make_call("chat", stream=True), slow))
    await until(lambda: received == 1)
    before = -1
    while before != emitted:
        before = emitted
        await asyncio.sleep(0.3)
    assert emitted < count / 10, "20 MB are in flight for a client that reads nothing"
    may_read.set()
    await call
    assert received == count + 1


async def test_foreign_errors_never_leave_the_transport(net: Net) -> None:
    """Fuzz the border: a peer that is no worker at all."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        transport = net.connect(port)
        with pytest.raises(SetupError, match="same release"):
            await transport.status()
        with pytest.raises(NoEndpoint):
            await transport.infer(make_call("chat"), Collector())
    finally:
        await server.stop(None)

    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    listener = await asyncio.start_server(speak_http, "127.0.0.1", 0)
    async with listener:
        transport = net.connect(listener.sockets[0].getsockname()[1], limits=Limits(status_timeout_s=2.0))
        with pytest.raises(InferHubError):
            await transport.status()


async def test_a_channel_needs_a_running_loop() -> None:
    def outside() -> None:
        GrpcTransport("127.0.0.1:1", CODEC)

    with pytest.raises(RuntimeError):
        await asyncio.to_thread(outside)
