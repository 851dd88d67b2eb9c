"""Calls that share batches, from the worker's door to a backend and back: nothing lost, nothing mixed up."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from inferhub.backends.base import BatchBackend, BatchResult
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    BackendRefused,
    EndpointLost,
    InferHubError,
    InternalError,
    ModelNotFound,
    OutOfMemory,
    Overloaded,
    UpstreamFailed,
)
from inferhub.core.models import Capability, ModelSpec
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.telemetry.batches import BATCHES
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import GrpcTransport
from inferhub.transport.grpc_server import serve
from inferhub.worker.batching.batcher import Batcher
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

PATIENCE_S = 30.0


class Together(BatchBackend):
    """Embeds a text as its number. What the text says besides is what becomes of it; the class remembers."""

    batches = frozenset({"embedding"})
    max_batch_cost: ClassVar[float] = 500.0
    capabilities = (Capability("embedding", frozenset({"token_inputs"})), Capability("moderation"))
    gate: ClassVar[asyncio.Event]
    seen: ClassVar[list[list[str]]]
    alone: ClassVar[list[str]]
    cancelled: ClassVar[int]
    fits: ClassVar[int]

    async def load(self) -> None:
        kind = type(self)
        kind.gate, kind.seen, kind.alone, kind.cancelled, kind.fits = asyncio.Event(), [], [], 0, 99

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        self.alone.append(call.modality)
        yield Finished(Usage(1))

    async def run_batch(self, calls: Sequence[Call]) -> Sequence[BatchResult]:
        texts = [call.request.input for call in calls]
        self.seen.append(texts)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            type(self).cancelled += 1
            raise
        if len(calls) > self.fits:
            raise OutOfMemory
        said = " ".join(texts)
        if "poison" in said:
            raise ZeroDivisionError("secret detail")
        if "sick" in said:
            raise UpstreamFailed("The engine is sick.")
        if "suicide" in said:
            raise asyncio.CancelledError
        answers = [self._answer(text) for text in texts]
        return answers[1:] if "missing" in said else answers

    def length(self, call: Call) -> float:
        return 1.0

    def _answer(self, text: str) -> BatchResult:
        number, _, fate = text.partition(" ")
        match fate:
            case "refused":
                return BackendRefused(f"Not {number}.")
            case "endless":
                return [Delta(EmbeddingDelta(0, b""))]
            case "empty":
                return []
        return [Delta(EmbeddingDelta(0, struct.pack("<f", float(number)))), Finished(Usage(int(number)))]


async def host_of(**spec: object) -> Host:
    host = Host(Path, isolation="never", backends=lambda _: Together)
    await host.load(ModelSpec("m", "together", **{"slots": 0, **spec}))  # type: ignore[arg-type]
    return host


async def ask(host: Host, text: object, timeout_s: float = 60.0) -> tuple[float, int]:
    emit = Collector()
    await host.infer(make_call("embedding", input=text, timeout_s=timeout_s), emit)
    delta, finished = emit.chunks
    assert isinstance(delta, Delta)
    assert isinstance(finished, Finished)
    return struct.unpack("<f", delta.payload.vector)[0], finished.usage.input_tokens


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def crowd(host: Host, texts: Sequence[str]) -> list[asyncio.Task[tuple[float, int]]]:
    """All of them wait behind a first batch of one, `0`, until the gate opens."""
    tasks = [asyncio.create_task(ask(host, "0"))]
    await until(lambda: Together.seen == [["0"]])
    tasks += [asyncio.create_task(ask(host, text)) for text in texts]
    await until(lambda: host.models()[0].running + host.models()[0].queued == len(tasks))
    return tasks


async def outcomes(tasks: Sequence[asyncio.Task[tuple[float, int]]]) -> list[object]:
    async with asyncio.timeout(PATIENCE_S):
        return [
            outcome if isinstance(outcome, BaseException) else outcome[0]
            for outcome in await asyncio.gather(*tasks, return_exceptions=True)
        ]


async def test_what_came_while_it_was_busy_is_computed_together_and_everyone_gets_their_own() -> None:
    host = await host_of()
    BATCHES.sizes.clear()
    tasks = await crowd(host, [f"{n}" for n in range(1, 21)])
    assert host.models()[0].spec.slots == 64
    Together.gate.set()
    assert await outcomes(tasks) == [float(n) for n in range(21)]
    assert [usage for _, usage in (task.result() for task in tasks)] == list(range(21))
    assert [len(batch) for batch in Together.seen] == [1, 20]
    assert BATCHES.sizes["embedding", "m"].counts == [1, 0, 0, 0, 0, 20, 0, 0, 0]
    assert BATCHES.sizes["embedding", "m"].sum == 1 + 20 * 20
    assert host.models()[0].s_per_cost > 0
    await host.close()


async def test_an_idle_engine_waits_for_nobody() -> None:
    host = await host_of()
    Together.gate.set()
    for number in range(3):
        assert await ask(host, f"{number}") == (number, number)
    assert [len(batch) for batch in Together.seen] == [1, 1, 1]
    await host.close()


@pytest.mark.parametrize(("spec", "most"), [({"max_batch": 4}, 4), ({"slots": 6}, 5)])
async def test_a_batch_has_what_the_spec_allows(spec: dict[str, object], most: int) -> None:
    """Of the six that a model with 6 slots takes, one is being computed."""
    host = await host_of(**spec)
    tasks = await crowd(host, [f"{n}" for n in range(1, 11)])
    Together.gate.set()
    assert await outcomes(tasks) == [float(n) for n in range(11)]
    sizes = [len(batch) for batch in Together.seen]
    assert (sum(sizes), max(sizes)) == (11, most)
    await host.close()


async def test_max_batch_1_and_what_is_in_no_batch_go_the_plain_way() -> None:
    host = await host_of(max_batch=1)
    for _ in range(2):
        await host.infer(make_call("embedding", input="1"), Collector())
    await host.close()
    assert (Together.alone, Together.seen) == (["embedding"] * 2, [])
    host = await host_of()
    await host.infer(make_call("moderation", input="1"), Collector())
    await host.infer(make_call("embedding", input=["sea " * 20] * 20), Collector())  # a batch by itself
    assert (Together.alone, Together.seen) == (["moderation", "embedding"], [])
    await host.close()


@pytest.mark.parametrize(("fate", "kind"), [("poison", InternalError), ("sick", UpstreamFailed)])
async def test_a_poison_element_fails_alone_after_three_tries(fate: str, kind: type[InferHubError]) -> None:
    host = await host_of()
    tasks = await crowd(
        host, [*(f"{n}" for n in range(1, 20)), f"20 {fate}", *(f"{n}" for n in range(21, 32))]
    )
    Together.gate.set()
    found = await outcomes(tasks)
    failure = found.pop(20)
    assert type(failure) is kind
    assert "secret" not in str(failure)
    assert found == [float(n) for n in range(32) if n != 20]
    for number in range(32):
        tries = sum(any(text.split()[0] == f"{number}" for text in batch) for batch in Together.seen)
        assert tries <= 3, (number, tries)
    await host.close()


async def test_many_poison_elements_fail_each_for_itself() -> None:
    host = await host_of()
    tasks = await crowd(host, [f"{n} poison" if n % 3 else f"{n}" for n in range(1, 31)])
    Together.gate.set()
    for number, outcome in enumerate(await outcomes(tasks)):
        assert type(outcome) is InternalError if number % 3 else outcome == number
    await host.close()


async def test_an_own_failure_is_nobody_elses() -> None:
    host = await host_of()
    tasks = await crowd(host, ["1", "2 refused", "3 endless", "4 empty", "5"])
    Together.gate.set()
    found = await outcomes(tasks)
    assert [found[n] for n in (0, 1, 5)] == [0.0, 1.0, 5.0]
    assert [type(found[n]) for n in (2, 3, 4)] == [BackendRefused, InternalError, InternalError]
    assert len(Together.seen) == 2  # nothing was tried twice
    await host.close()


@pytest.mark.parametrize("fate", ["missing", "suicide"])
async def test_a_backend_that_breaks_its_contract_hurts_only_those_it_fails(fate: str) -> None:
    host = await host_of()
    tasks = await crowd(host, ["1", "2", f"3 {fate}", "4"])
    Together.gate.set()
    found = await outcomes(tasks)
    assert type(found.pop(3)) is InternalError
    assert found == [0.0, 1.0, 2.0, 4.0]
    assert await ask(host, "7") == (7, 7)
    await host.close()


async def test_out_of_memory_halves_the_batches_and_fails_nobody() -> None:
    host = await host_of()
    tasks = await crowd(host, [f"{n}" for n in range(1, 33)])
    Together.fits = 5
    Together.gate.set()
    assert await outcomes(tasks) == [float(n) for n in range(33)]
    tasks = [asyncio.create_task(ask(host, f"{n}")) for n in range(33)]
    seen = len(Together.seen)
    await outcomes(tasks)
    assert max(len(batch) for batch in Together.seen[seen:]) <= 5  # it has learnt
    Together.fits = 0
    assert type((await outcomes([asyncio.create_task(ask(host, "1"))]))[0]) is OutOfMemory
    await host.close()


async def test_who_leaves_a_waiting_batch_is_not_computed() -> None:
    host = await host_of()
    tasks = await crowd(host, ["1", "2", "3"])
    tasks[2].cancel()
    await asyncio.wait([tasks[2]])
    Together.gate.set()
    assert (await outcomes([tasks[0], tasks[1], tasks[3]])) == [0.0, 1.0, 3.0]
    assert Together.seen == [["0"], ["1", "3"]]
    await host.close()


async def test_a_running_batch_goes_on_while_anybody_wants_it() -> None:
    host = await host_of()
    tasks = await crowd(host, ["1", "2"])
    Together.gate.set()
    await tasks[0]
    Together.gate.clear()
    await until(lambda: len(Together.seen) == 2)
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert Together.cancelled == 0
    Together.gate.set()
    assert await outcomes(tasks[2:]) == [2.0]
    assert Together.cancelled == 0
    await host.close()


async def test_a_running_batch_that_nobody_wants_is_stopped() -> None:
    host = await host_of()
    tasks = await crowd(host, [])
    later = asyncio.create_task(ask(host, "5"))
    await until(lambda: host.models()[0].running == 2)
    tasks[0].cancel()
    await until(lambda: Together.cancelled == 1)
    Together.gate.set()
    assert await outcomes([later]) == [5.0]  # the engine is free at once
    await host.close()


async def test_a_deadline_ends_one_call_and_not_its_batch() -> None:
    host = await host_of()
    hurried = asyncio.create_task(ask(host, "1", timeout_s=0.05))
    patient = asyncio.create_task(ask(host, "2"))
    await asyncio.wait([hurried])
    assert "The call's time was over" in str(hurried.exception())
    Together.gate.set()
    assert await outcomes([patient]) == [2.0]
    assert Together.seen == [["1", "2"]]
    await host.close()


async def test_unloading_ends_all_of_them() -> None:
    host = await host_of()
    tasks = await crowd(host, ["1", "2"])
    await host.close()
    assert {type(outcome) for outcome in await outcomes(tasks)} == {EndpointLost}


async def test_a_batcher_that_is_closed_leaves_nobody_waiting() -> None:
    backend = Together(ModelSpec("m", "together"), None)
    await backend.load()
    batcher = Batcher(backend)
    waiting = [asyncio.create_task(batcher.answer(call)) for call in embeddings("1", "2")]
    await until(lambda: len(Together.seen) == 1)
    waiting.append(asyncio.create_task(batcher.answer(*embeddings("3"))))
    await asyncio.sleep(0)
    await batcher.close()
    async with asyncio.timeout(PATIENCE_S):
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [EndpointLost] * 3
    Together.gate.set()
    assert len(await batcher.answer(*embeddings("4"))) == 2


async def test_the_queue_in_front_of_batches_is_bounded() -> None:
    host = await host_of(max_batch=2, queue_limit=3)
    tasks = await crowd(host, [f"{n}" for n in range(1, 7)])  # 2 batches in the slots, 3 in the queue
    with pytest.raises(Overloaded):
        await ask(host, "9")
    Together.gate.set()
    assert await outcomes(tasks) == [float(n) for n in range(7)]
    await host.close()


# --- in another process --------------------------------------------------------------------------


@asynccontextmanager
async def reached(host: Host, folder: Path) -> AsyncIterator[GrpcTransport]:
    """Its worker over gRPC, as a parent reaches a child."""
    codec = Codec(modalities())
    server = await serve(Worker("child", host, tuple), f"unix:{folder / 'w'}", codec)
    transport = GrpcTransport(f"unix:{folder / 'w'}", codec)
    try:
        yield transport
    finally:
        await transport.close()
        await server.stop(0.0)
        await host.close()


def embeddings(*texts: str) -> list[Call]:
    return [make_call("embedding", input=text) for text in texts]


async def test_calls_that_travel_together_are_computed_together(tmp_path: Path) -> None:
    async with reached(await host_of(), tmp_path) as transport:
        Together.gate.set()
        calls = [*embeddings("1", "2 refused", "3"), make_call("embedding", "unknown", input="4")]
        one, refused, three, unknown = await transport.infer_many(calls)
        assert isinstance(refused, BackendRefused)
        assert isinstance(unknown, ModelNotFound)
        for answer, number in ((one, 1.0), (three, 3.0)):
            assert not isinstance(answer, InferHubError)
            delta, finished = answer
            assert isinstance(delta, Delta)
            assert struct.unpack("<f", delta.payload.vector) == (number,)
            assert finished == Finished(Usage(int(number)), batch=3)
    assert Together.seen == [["1", "2 refused", "3"]]


async def test_calls_that_travel_together_are_given_up_together(tmp_path: Path) -> None:
    async with reached(await host_of(), tmp_path) as transport:
        asked = asyncio.create_task(transport.infer_many(embeddings("1", "2")))
        await until(lambda: len(Together.seen) == 1)
        asked.cancel()
        await until(lambda: Together.cancelled == 1)
        Together.gate.set()
        assert len(await transport.infer_many(embeddings("3"))) == 1
