"""Calls whose client goes on talking, over gRPC and through the strict local transport."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inferhub.core.call import Call, Delta, Emit, Finished, Frame
from inferhub.core.errors import EndpointLost, InferHubError, Invalid
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.transcription import TranscriptDelta
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import serve
from inferhub.transport.local import LocalTransport
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

CODEC = Codec(modalities())
Answer = Callable[[Call, Emit], Awaitable[None]]


class Peer:
    """A worker with no models that answers calls with one coroutine function."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.cancelled = asyncio.Event()

    async def infer(self, call: Call, emit: Emit) -> None:
        try:
            await self.answer(call, emit)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def load(self, spec: ModelSpec) -> ModelStatus:
        raise Invalid("nothing to load")

    async def unload(self, name: str) -> None: ...

    async def status(self) -> WorkerStatus:
        return WorkerStatus("peer", ())

    async def drain(self, grace_s: float) -> None: ...

    async def close(self) -> None: ...


Connect = Callable[[Answer], Awaitable[tuple[Peer, Transport]]]


@pytest.fixture(params=["grpc", "strict local"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def made(answer: Answer) -> tuple[Peer, Transport]:
            peer = Peer(answer)
            if request.param != "grpc":
                return peer, LocalTransport(peer, strict=CODEC)
            server = await serve(peer, "127.0.0.1:0", CODEC)
            stack.push_async_callback(server.stop, 0.0)
            transport = GrpcTransport(f"127.0.0.1:{server.port}", CODEC)
            stack.push_async_callback(transport.close)
            return peer, transport

        yield made


def talk(incoming: AsyncIterator[Frame]) -> Call:
    return replace(make_call("transcription", stream=True), incoming=incoming)


async def said(*frames: Frame) -> AsyncIterator[Frame]:
    for frame in frames:
        yield frame


async def heard_frame(emit: Emit, frame: Frame) -> None:
    await emit(Delta(TranscriptDelta("partial", text=f"{frame.event or len(frame.data)}")))


async def repeat(call: Call, emit: Emit) -> None:
    """One word for each frame, and the end when the client has ended."""
    assert call.incoming is not None
    total = 0
    async for frame in call.incoming:
        total += len(frame.data)
        await heard_frame(emit, frame)
    await emit(Finished(Usage(audio_ms=total)))


def words(got: Collector) -> list[str]:
    return [chunk.payload.text for chunk in got.chunks if isinstance(chunk, Delta)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_frames_arrive_whole_and_in_order_and_the_end_is_heard(connect: Connect) -> None:
    _, transport = await connect(repeat)
    got = Collector()
    await transport.infer(talk(said(Frame(b"abc"), Frame(event="commit"), Frame(b""), Frame(b"\0" * 9))), got)
    assert words(got) == ["3", "commit", "0", "9"]
    assert got.chunks[-1] == Finished(Usage(audio_ms=12))


async def test_answers_come_while_the_client_still_talks(connect: Connect) -> None:
    _, transport = await connect(repeat)
    answered = asyncio.Event()
    got = Collector()

    async def frames() -> AsyncIterator[Frame]:
        yield Frame(b"one")
        # A transport that collects the frames first would wait here for ever.
        await asyncio.wait_for(answered.wait(), 30)
        yield Frame(b"three")

    async def emit(chunk: object) -> None:
        await got(chunk)  # type: ignore[arg-type]
        answered.set()

    await transport.infer(talk(frames()), emit)
    assert words(got) == ["3", "5"]


async def test_a_listener_that_takes_nothing_makes_the_client_wait(connect: Connect) -> None:
    go_on = asyncio.Event()
    taken = 0
    piece = b"\0" * 65_536

    async def slow(call: Call, emit: Emit) -> None:
        await emit(Delta(TranscriptDelta("about")))
        await go_on.wait()
        await repeat(call, emit)

    async def frames() -> AsyncIterator[Frame]:
        nonlocal taken
        for _ in range(400):
            taken += 1
            yield Frame(piece)

    _, transport = await connect(slow)
    got = Collector()
    calling = asyncio.ensure_future(transport.infer(talk(frames()), got))
    await until(lambda: bool(got.chunks))
    before = -1
    while before != taken:  # until nothing moves any more
        before = taken
        await asyncio.sleep(0.3)
    assert taken < 200  # of 26 MB, most still waits at the client
    go_on.set()
    await asyncio.wait_for(calling, 60)
    assert taken == 400
    assert got.chunks[-1] == Finished(Usage(audio_ms=400 * len(piece)))


async def test_a_client_that_takes_nothing_makes_the_listener_wait(connect: Connect) -> None:
    go_on = asyncio.Event()
    emitted = 0

    async def flood(call: Call, emit: Emit) -> None:
        nonlocal emitted
        for _ in range(2000):
            await emit(Delta(TranscriptDelta("partial", text="x" * 65_536)))
            emitted += 1
        await emit(Finished(Usage()))

    async def emit(chunk: object) -> None:
        await go_on.wait()

    _, transport = await connect(flood)
    calling = asyncio.ensure_future(transport.infer(talk(said(Frame(b"x"))), emit))
    before = -1
    while before != emitted:
        before = emitted
        await asyncio.sleep(0.3)
    assert emitted < 1000
    go_on.set()
    await asyncio.wait_for(calling, 60)
    assert emitted == 2000


async def test_a_cancelled_call_ends_the_listener_and_leaves_the_client_nothing_to_say(
    connect: Connect,
) -> None:
    asked = asyncio.Event()

    async def frames() -> AsyncIterator[Frame]:
        yield Frame(b"one")
        asked.set()
        await asyncio.Event().wait()

    peer, transport = await connect(repeat)
    got = Collector()
    calling = asyncio.ensure_future(transport.infer(talk(frames()), got))
    await until(lambda: bool(got.chunks))
    await asyncio.wait_for(asked.wait(), 30)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.wait_for(peer.cancelled.wait(), 30)


async def test_a_listener_that_refuses_is_heard_while_the_client_talks(connect: Connect) -> None:
    async def refuse(call: Call, emit: Emit) -> None:
        assert call.incoming is not None
        await anext(call.incoming)
        raise Invalid("This is no sound.", param="audio", code="invalid_audio")

    async def endless() -> AsyncIterator[Frame]:
        while True:
            yield Frame(b"x" * 1000)
            await asyncio.sleep(0)

    _, transport = await connect(refuse)
    with pytest.raises(Invalid, match="no sound") as caught:
        await asyncio.wait_for(transport.infer(talk(endless()), Collector()), 30)
    assert (caught.value.param, caught.value.wire_code) == ("audio", "invalid_audio")


async def test_a_listener_may_finish_before_the_client_does(connect: Connect) -> None:
    async def enough(call: Call, emit: Emit) -> None:
        assert call.incoming is not None
        await heard_frame(emit, await anext(call.incoming))
        await emit(Finished(Usage(audio_ms=1)))

    async def endless() -> AsyncIterator[Frame]:
        while True:
            yield Frame(b"x")
            await asyncio.sleep(0)

    _, transport = await connect(enough)
    got = Collector()
    await asyncio.wait_for(transport.infer(talk(endless()), got), 30)
    assert got.chunks[-1] == Finished(Usage(audio_ms=1))


async def test_a_client_whose_words_break_off_is_told_so(connect: Connect) -> None:
    async def breaking() -> AsyncIterator[Frame]:
        yield Frame(b"one")
        raise OSError("the microphone is gone")

    _, transport = await connect(repeat)
    with pytest.raises((InferHubError, OSError)):
        await asyncio.wait_for(transport.infer(talk(breaking()), Collector()), 30)
    gc.collect()


# --- a child process ---------------------------------------------------------------------------------


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker("w", Host(Path, isolation="always"), tuple)
    yield worker
    await worker.close()


def children() -> list[psutil.Process]:
    return [c for c in psutil.Process().children() if is_worker(c)]


def is_worker(process: psutil.Process) -> bool:
    # One that was killed may be gone, or not yet be waited for.
    with suppress(psutil.NoSuchProcess):
        return "inferhub.worker.child" in process.cmdline()
    return False


def talk_to(worker: Worker, frames: AsyncIterator[Frame], got: Collector) -> asyncio.Task[None]:
    return asyncio.create_task(worker.infer(replace(talk(frames), model="m"), got))


async def endless() -> AsyncIterator[Frame]:
    while True:
        yield Frame(bytes(3200))
        await asyncio.sleep(0.01)


async def test_a_child_that_is_killed_while_somebody_talks_is_endpoint_lost_and_comes_back(
    worker: Worker,
) -> None:
    await worker.load(ModelSpec("m", "echo", slots=1))
    got = Collector()
    calling = talk_to(worker, endless(), got)
    await until(lambda: len(got.chunks) > 5)
    (child,) = children()
    child.send_signal(signal.SIGKILL)
    with pytest.raises(EndpointLost):
        await asyncio.wait_for(calling, 30)
    async with asyncio.timeout(60):
        # Until it is noticed that the old one is gone, the model still looks ready.
        while set(children()) <= {child} or not (await worker.status()).models[0].ready:
            await asyncio.sleep(0.05)
    again = Collector()
    await asyncio.wait_for(talk_to(worker, said(Frame(bytes(3200))), again), 60)
    assert again.chunks[-1] == Finished(Usage(audio_ms=100))


async def test_hanging_up_frees_the_childs_slot_at_once(worker: Worker) -> None:
    await worker.load(ModelSpec("m", "echo", slots=1, queue_limit=0))
    for _ in range(5):
        got = Collector()
        calling = talk_to(worker, endless(), got)
        await until(lambda seen=got: len(seen.chunks) > 2)  # type: ignore[misc]
        calling.cancel()
        await asyncio.wait([calling])
        assert calling.cancelled()
