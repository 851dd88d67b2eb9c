"""A worker behaves the same called directly, strictly through the codec, and over gRPC."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import pytest

from inferhub.backends import backend_class
from inferhub.backends.base import Backend
from inferhub.backends.echo import unit_vector
from inferhub.core.call import Call, Chunk, Delta, Finished
from inferhub.core.errors import (
    Conflict,
    DeadlineExceeded,
    Draining,
    EndpointLost,
    InferHubError,
    InternalError,
    ModelNotFound,
    Overloaded,
    SetupError,
    Unsupported,
    UpstreamFailed,
    WeightsMissing,
)
from inferhub.core.models import Capability, ModelSpec
from inferhub.core.serving import DeviceStatus
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import serve
from inferhub.transport.local import LocalTransport
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

CODEC = Codec(modalities())
DEVICES = (DeviceStatus("cpu", "Test CPU", 2**34, 2**33),)
Connect = Callable[[Worker], Awaitable[Transport]]


class Scripted(Backend):
    """Does what the first word of the last message says; the class remembers what happened."""

    loads: ClassVar[int] = 0
    open_runs: ClassVar[int] = 0
    unloaded_with: ClassVar[list[int]] = []
    gate: ClassVar[asyncio.Event]
    capabilities = (Capability("chat", frozenset({"stream"})),)

    async def load(self) -> None:
        type(self).loads += 1
        await asyncio.sleep(0)

    async def unload(self) -> None:
        self.unloaded_with.append(self.open_runs)

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        type(self).open_runs += 1
        try:
            async for chunk in self._script(call.request.messages[-1].content):
                yield chunk
        finally:
            await asyncio.sleep(0)
            type(self).open_runs -= 1

    async def _script(self, word: str) -> AsyncIterator[Delta | Finished]:
        yield Delta(ChatDelta(content="one"))
        match word:
            case "unfinished":
                return
            case "twice":
                yield Finished(Usage())
            case "late":
                yield Finished(Usage())
                yield Delta(ChatDelta(content="late"))
            case "nonsense":
                yield "text"  # type: ignore[misc]
            case "foreign":
                raise ZeroDivisionError("secret detail")
            case "own":
                raise Overloaded("Busy.", param="p", code="finer", retry_after_s=3.0)
            case "cancels-itself":
                raise asyncio.CancelledError
            case "gate":
                await self.gate.wait()
            case "hang":
                await asyncio.Event().wait()
            case "big":
                yield Delta(ChatDelta(content="x" * 5_000_000))
        yield Finished(Usage(1, 1))


@pytest.fixture(params=["local", "strict", "grpc"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def connect(worker: Worker) -> Transport:
            stack.push_async_callback(worker.close)
            if request.param != "grpc":
                return LocalTransport(worker, strict=CODEC if request.param == "strict" else None)
            server = await serve(worker, "127.0.0.1:0", CODEC)
            stack.push_async_callback(server.stop, 0.0)
            transport = GrpcTransport(f"127.0.0.1:{server.port}", CODEC)
            stack.push_async_callback(transport.close)
            return transport

        yield connect


def make_worker(backend: type[Backend] | None = None) -> Worker:
    host = Host(Path, isolation="never", backends=(lambda _: backend) if backend else backend_class)
    return Worker("worker-1", host, lambda: DEVICES)


@pytest.fixture
async def scripted(connect: Connect) -> Transport:
    Scripted.loads, Scripted.open_runs, Scripted.gate = 0, 0, asyncio.Event()
    Scripted.unloaded_with.clear()
    transport = await connect(make_worker(Scripted))
    await transport.load(ModelSpec("m", "scripted", slots=1, queue_limit=2))
    return transport


def say(word: str, **more: object) -> Call:
    return make_call("chat", stream=True, messages=[{"role": "user", "content": word}], **more)  # type: ignore[arg-type]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.005)


async def load_of(transport: Transport) -> tuple[int, int]:
    model = (await transport.status()).models[0]
    return model.running, model.queued


async def started(transport: Transport, call: Call, load: tuple[int, int]) -> asyncio.Task[None]:
    """The call as a task, once the worker reports this many running and queued."""
    task = asyncio.create_task(transport.infer(call, Collector()))
    await until(lambda: _is(transport, load))
    return task


async def _is(transport: Transport, load: tuple[int, int]) -> bool:
    return await load_of(transport) == load


async def test_an_answer_arrives_whole_and_in_order(connect: Connect) -> None:
    transport = await connect(make_worker())
    await transport.load(ModelSpec("m", "echo"))
    for is_stream in (True, False):
        got = Collector()
        text = " ".join(str(number) for number in range(100))
        await transport.infer(
            make_call("chat", stream=is_stream, messages=[{"role": "user", "content": text}]), got
        )
        *deltas, finish, end = got.chunks
        assert "".join(chunk.payload.content for chunk in deltas if isinstance(chunk, Delta)) == text
        assert finish == Delta(ChatDelta(finish_reason="stop"))
        assert end == Finished(Usage(100, 100))


async def test_the_status_tells_models_devices_and_load(scripted: Transport) -> None:
    status = await scripted.status()
    assert (status.id, status.devices, status.draining) == ("worker-1", DEVICES, False)
    (model,) = status.models
    assert model.spec == ModelSpec("m", "scripted", slots=1, queue_limit=2, load="start")
    assert model.capabilities == Scripted.capabilities
    assert (model.device, model.running, model.queued, model.ready) == ("cpu", 0, 0, True)


@pytest.mark.parametrize(
    ("word", "kind", "chunks"),
    [
        ("unfinished", UpstreamFailed, 1),
        ("twice", InternalError, 1),
        ("late", InternalError, 1),
        ("nonsense", InternalError, 1),
        ("foreign", InternalError, 1),
        ("cancels-itself", InternalError, 1),
        ("own", Overloaded, 1),
    ],
)
async def test_a_failure_keeps_its_class_and_the_chunks_before_it(
    scripted: Transport,
    caplog: pytest.LogCaptureFixture,
    word: str,
    kind: type[InferHubError],
    chunks: int,
) -> None:
    got = Collector()
    with caplog.at_level(logging.ERROR), pytest.raises(InferHubError) as failure:
        await scripted.infer(say(word), got)
    assert type(failure.value) is kind
    assert got.chunks == [Delta(ChatDelta(content="one"))] * chunks
    assert "secret detail" not in failure.value.message
    if word == "foreign":
        assert "secret detail" in caplog.text
    if word == "own":
        error = failure.value
        assert (error.message, error.param, error.wire_code, error.retry_after_s) == (
            "Busy.",
            "p",
            "finer",
            3.0,
        )
    assert await load_of(scripted) == (0, 0)
    assert Scripted.open_runs == 0


async def test_unknown_models_and_modalities_are_refused(scripted: Transport) -> None:
    with pytest.raises(ModelNotFound, match="'other'"):
        await scripted.infer(make_call("chat", "other"), Collector())
    with pytest.raises(Unsupported, match="completion; it offers chat") as refused:
        await scripted.infer(make_call("completion"), Collector())
    assert refused.value.param == "model"


async def test_a_full_queue_refuses_at_once(scripted: Transport) -> None:
    tasks = [await started(scripted, say("hang"), load) for load in [(1, 0), (1, 1), (1, 2)]]
    with pytest.raises(Overloaded) as refused:
        await scripted.infer(say("ok"), Collector())
    assert refused.value.retry_after_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: _is(scripted, (0, 0)))


async def test_cancelling_frees_the_queue_and_the_slot(scripted: Transport) -> None:
    running = await started(scripted, say("hang"), (1, 0))
    waiting = await started(scripted, say("hang"), (1, 1))
    for task, load in [(waiting, (1, 0)), (running, (0, 0))]:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda load=load: _is(scripted, load))  # type: ignore[misc]
    assert Scripted.open_runs == 0
    await scripted.infer(say("ok"), Collector())


async def test_an_emit_that_fails_frees_the_slot_and_keeps_its_own_exception(scripted: Transport) -> None:
    async def hang_up(chunk: Chunk) -> None:
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError):
        await scripted.infer(say("hang"), hang_up)
    await until(lambda: _is(scripted, (0, 0)))
    assert Scripted.open_runs == 0


async def test_the_deadline_ends_waiting_and_running_calls(scripted: Transport) -> None:
    running = await started(scripted, say("hang"), (1, 0))
    with pytest.raises(DeadlineExceeded, match=r"in the queue|reached"):
        await scripted.infer(say("hang", timeout_s=0.3), Collector())
    await until(lambda: _is(scripted, (1, 0)))
    running.cancel()
    await asyncio.wait([running])
    await until(lambda: _is(scripted, (0, 0)))
    with pytest.raises(DeadlineExceeded, match=r"while it answered|reached"):
        await scripted.infer(say("hang", timeout_s=0.3), Collector())
    await until(lambda: _is(scripted, (0, 0)))
    assert Scripted.open_runs == 0
    with pytest.raises(DeadlineExceeded):
        await scripted.infer(say("ok", timeout_s=-1), Collector())


async def test_loading_the_same_spec_again_returns_the_running_model(scripted: Transport) -> None:
    spec = ModelSpec("m", "scripted", slots=1, queue_limit=2, load="start")
    assert (await scripted.load(spec)).spec == spec
    with pytest.raises(Conflict, match="unload it first"):
        await scripted.load(ModelSpec("m", "scripted", slots=2))
    assert Scripted.loads == 1
    await scripted.unload("m")
    await scripted.unload("m")
    await scripted.unload("never-there")
    assert (await scripted.status()).models == ()
    assert (await scripted.load(ModelSpec("m", "scripted", slots=2))).spec.slots == 2


async def test_concurrent_loads_of_one_name_load_once(connect: Connect) -> None:
    Scripted.loads = 0
    transport = await connect(make_worker(Scripted))
    spec = ModelSpec("m", "scripted", load="start")
    statuses = await asyncio.gather(*(transport.load(spec) for _ in range(5)))
    assert [status.spec for status in statuses] == [spec] * 5
    assert Scripted.loads == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("m", "nothing-like-it"), "available: "),
        (ModelSpec("m", "echo", options={"gap": 1}), "gap_s"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bad_spec_is_refused_with_what_is_allowed(
    connect: Connect, spec: ModelSpec, message: str
) -> None:
    transport = await connect(make_worker())
    with pytest.raises(SetupError, match=message):
        await transport.load(spec)
    assert (await transport.status()).models == ()


async def test_weights_are_resolved_where_they_are_needed(connect: Connect, tmp_path: Path) -> None:
    class Weighty(Scripted):
        needs_weights = True
        seen: ClassVar[list[Path | None]] = []

        async def load(self) -> None:
            self.seen.append(self.weights)

    host = Host(lambda name: tmp_path / name, backends=lambda _: Weighty)
    transport = await connect(Worker("w", host, tuple))
    with pytest.raises(WeightsMissing):
        await transport.load(ModelSpec("m", "weighty"))
    await transport.load(ModelSpec("m", "weighty", weights="some.gguf"))
    assert Weighty.seen == [tmp_path / "some.gguf"]


async def test_a_load_that_breaks_says_so_without_details(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Scripted):
        async def load(self) -> None:
            raise OSError("secret path")

    transport = await connect(make_worker(Breaks))
    with pytest.raises(InternalError) as failure:
        await transport.load(ModelSpec("m", "breaks"))
    assert "secret path" not in failure.value.message
    assert "secret path" in caplog.text


async def test_unload_ends_the_calls_before_it_frees_the_model(scripted: Transport) -> None:
    running = await started(scripted, say("hang"), (1, 0))
    waiting = await started(scripted, say("hang"), (1, 1))
    await scripted.unload("m")
    for task in (running, waiting):
        with pytest.raises(EndpointLost):
            await task
    assert Scripted.unloaded_with == [0]


async def test_drain_refuses_new_calls_and_lets_the_running_ones_finish(scripted: Transport) -> None:
    running = await started(scripted, say("gate"), (1, 0))
    waiting = await started(scripted, say("gate"), (1, 1))
    draining = asyncio.create_task(scripted.drain(60))
    await until(lambda: _is_draining(scripted))
    with pytest.raises(Draining):
        await scripted.infer(say("ok"), Collector())
    with pytest.raises(Draining):
        await scripted.load(ModelSpec("other", "scripted"))
    assert not draining.done()
    Scripted.gate.set()
    await asyncio.gather(draining, running, waiting)
    assert await load_of(scripted) == (0, 0)


async def _is_draining(transport: Transport) -> bool:
    return (await transport.status()).draining


async def test_drain_cuts_off_what_outlives_the_grace(scripted: Transport) -> None:
    got = Collector()
    running = asyncio.create_task(scripted.infer(say("hang"), got))
    await until(lambda: _has(got, 1))
    waiting = await started(scripted, say("hang"), (1, 1))
    await scripted.drain(0.05)
    for task in (running, waiting):
        with pytest.raises(Draining):
            await task
    assert got.chunks == [Delta(ChatDelta(content="one"))]
    await until(lambda: _is(scripted, (0, 0)))


async def _has(got: Collector, count: int) -> bool:
    return len(got.chunks) == count


async def test_five_megabytes_travel_both_ways(scripted: Transport) -> None:
    got = Collector()
    await scripted.infer(say("big"), got)
    assert got.chunks[1] == Delta(ChatDelta(content="x" * 5_000_000))
    await scripted.infer(say("ü" * 2_500_000), Collector())


async def test_waiting_calls_are_served_in_order(scripted: Transport) -> None:
    order: list[int] = []

    async def ask(number: int) -> None:
        await scripted.infer(say("gate"), Collector())
        order.append(number)

    tasks = []
    for number, load in enumerate([(1, 0), (1, 1), (1, 2)]):
        tasks.append(asyncio.create_task(ask(number)))
        await until(lambda load=load: _is(scripted, load))  # type: ignore[misc]
    Scripted.gate.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_vectors_arrive_bit_for_bit(connect: Connect) -> None:
    transport = await connect(make_worker())
    await transport.load(ModelSpec("m", "echo", options={"dimensions": 384}))
    got = Collector()
    await transport.infer(make_call("embedding", input=["a", "b"]), got)
    vectors = [chunk.payload.vector for chunk in got.chunks if isinstance(chunk, Delta)]
    assert vectors == [unit_vector("a", 384), unit_vector("b", 384)]


async def test_close_unloads_everything() -> None:
    Scripted.unloaded_with.clear()
    worker = make_worker(Scripted)
    await worker.load(ModelSpec("a", "scripted"))
    await worker.load(ModelSpec("b", "scripted"))
    started_s = time.monotonic()
    await worker.close()
    assert Scripted.unloaded_with == [0, 0]
    assert time.monotonic() - started_s < 30
    assert (await worker.status()).models == ()
