"""The rings one by one, each around a handler written in the test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.errors import (
    DeadlineExceeded,
    EndpointStalled,
    InternalError,
    ModelNotFound,
    NoEndpoint,
    Overloaded,
    Unsupported,
    UpstreamFailed,
)
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.prices import PriceBook
from inferhub.core.quota import Quota, Unit, Window
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Patience, alias
from inferhub.core.usage import Usage, UsageEvent
from inferhub.egress import Fetched
from inferhub.media import MediaPool
from inferhub.modalities.chat import ChatDelta
from inferhub.pipeline import PipelineLimits, build_pipeline
from inferhub.pipeline.admit import Admit
from inferhub.pipeline.cache import Cache
from inferhub.pipeline.deadline import Deadline
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.limiter import Limiter, QuotaBook
from inferhub.pipeline.links import Links
from inferhub.pipeline.media import Media
from inferhub.pipeline.meter import Meter
from inferhub.pipeline.onion import build
from inferhub.pipeline.trace import Trace
from inferhub.routing import Router, RouterLimits
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.stores.spool.feed import Feed
from inferhub.stores.spool.frames import Record
from inferhub.stores.spool.spool import Spool
from inferhub.telemetry.metrics import Metrics
from inferhub.testing.calls import TESTER, Collector, make_call

WORD = Delta(ChatDelta(content="hi"))
END = Finished(Usage(1, 1))


async def answering(call: Call, emit: Emit) -> None:
    await emit(WORD)
    await emit(END)


def endpoint(infer: Handler, worker: str = "w1", **fields: object) -> Endpoint:
    capability = Capability("chat", **{"features": frozenset({"stream"}), **fields})  # type: ignore[arg-type]
    return Endpoint(worker, ModelStatus(ModelSpec("m", "echo"), (capability,), "cpu"), infer)


def directory(*endpoints: Endpoint) -> Directory:
    return Directory({"m": endpoints, "empty": ()}, {"route": alias("route", "m")})


# --- onion -------------------------------------------------------------------------------------


async def test_first_ring_is_outermost() -> None:
    seen: list[str] = []

    def ring(name: str):  # type: ignore[no-untyped-def]
        async def around(call: Call, emit: Emit, inner: Handler) -> None:
            seen.append(f"{name} in")
            await inner(call, emit)
            seen.append(f"{name} out")

        return around

    await build([ring("a"), ring("b")], answering)(make_call("chat"), Collector())
    assert seen == ["a in", "b in", "b out", "a out"]


# --- dispatch and directory --------------------------------------------------------------------


async def test_started_comes_with_the_first_chunk_and_only_once() -> None:
    emit = Collector()
    await Dispatch(lambda: directory(endpoint(answering)))(make_call("chat", "route"), emit)
    assert emit.chunks == [Started("m", "w1"), WORD, END]


async def test_a_failed_attempt_leaves_nothing_behind() -> None:
    emit = Collector()
    with pytest.raises(UpstreamFailed) as caught:
        await Dispatch(lambda: directory(endpoint(failing(UpstreamFailed()))))(make_call("chat", "m"), emit)
    assert emit.chunks == []
    assert caught.value.endpoint == "w1"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("rout", ModelNotFound, "Did you mean 'route'?"),
        ("gpt-9", ModelNotFound, "Available: empty, m, route."),
        ("empty", NoEndpoint, "not ready"),
    ],
)
async def test_unknown_and_absent_models(name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words.replace("?", r"\?")):
        await Dispatch(lambda: directory(endpoint(answering)))(make_call("chat", name), Collector())


async def test_a_parameter_the_model_lacks_is_named() -> None:
    with pytest.raises(Unsupported) as caught:
        await Dispatch(lambda: directory(endpoint(answering)))(make_call("chat", "m", n=2), Collector())
    assert caught.value.param == "n"


async def test_a_modality_the_model_lacks_is_named() -> None:
    with pytest.raises(Unsupported, match="/v1/embeddings"):
        await Dispatch(lambda: directory(endpoint(answering)))(make_call("embedding", "m"), Collector())


async def test_an_endpoint_that_was_chosen_is_called_and_no_other() -> None:
    both = directory(endpoint(failing(UpstreamFailed()), "w1"), endpoint(answering, "w2"))
    emit = Collector()
    await Dispatch(lambda: both)(replace(make_call("chat", "m"), endpoint="w2"), emit)
    assert emit.chunks == [Started("m", "w2"), WORD, END]
    with pytest.raises(NoEndpoint, match="'w3'"):
        await Dispatch(lambda: both)(replace(make_call("chat", "m"), endpoint="w3"), Collector())


async def test_the_least_busy_endpoint_is_chosen() -> None:
    release = asyncio.Event()
    asked: list[str] = []

    def worker(name: str) -> Endpoint:
        async def infer(call: Call, emit: Emit) -> None:
            asked.append(name)
            await release.wait()
            await answering(call, emit)

        return endpoint(infer, name)

    both = directory(worker("w1"), worker("w2"))
    dispatch = Dispatch(lambda: both)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(dispatch(make_call("chat", "m"), Collector()))
        for _ in range(4):
            await asyncio.sleep(0)
        assert len(asked) == 4
        release.set()
    assert sorted(asked) == ["w1", "w1", "w2", "w2"]


# --- deadline ----------------------------------------------------------------------------------


def hanging(*before: Chunk) -> Handler:
    async def handler(call: Call, emit: Emit) -> None:
        for chunk in before:
            await emit(chunk)
        await asyncio.Event().wait()

    return handler


def failing(error: Exception) -> Handler:
    async def handler(call: Call, emit: Emit) -> None:
        raise error

    return handler


async def test_the_whole_call_has_a_limit() -> None:
    with pytest.raises(DeadlineExceeded, match="request_timeout_s"):
        await build([Deadline()], hanging(WORD))(make_call("chat", timeout_s=0.0), Collector())


async def test_a_route_may_shorten_its_calls() -> None:
    seen: list[float] = []

    async def handler(call: Call, emit: Emit) -> None:
        seen.append(call.deadline_s - time.monotonic())

    route = replace(alias("quick", "m"), patience=Patience(request_timeout_s=5))
    ring = Deadline(lambda: Directory({"m": ()}, {"quick": route}))
    for name in ("quick", "m"):
        await build([ring], handler)(make_call("chat", name, timeout_s=60), Collector())
    await build([ring], handler)(make_call("chat", "quick", timeout_s=2), Collector())
    assert [round(left_s) for left_s in seen] == [5, 60, 2]


async def test_a_timeout_from_within_is_not_taken_for_ours() -> None:
    with pytest.raises(TimeoutError):
        await build([Deadline()], failing(TimeoutError()))(make_call("chat"), Collector())


# --- admit -------------------------------------------------------------------------------------


async def test_calls_in_flight_are_bounded_and_the_count_comes_back() -> None:
    handler = build([Admit(max_inflight=1)], hanging())
    first = asyncio.create_task(handler(make_call("chat"), Collector()))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await handler(make_call("chat"), Collector())
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(handler(make_call("chat"), Collector()))
    await asyncio.sleep(0)
    assert not second.done()
    second.cancel()


# --- trace and the whole -----------------------------------------------------------------------


async def _outcome(handler: Handler) -> str:
    metrics = Metrics()
    task = asyncio.create_task(build([Trace(metrics)], handler)(make_call("chat"), Collector()))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    exposition = metrics.exposition().decode()
    assert "inferhub_requests_inflight 0.0" in exposition
    return exposition


async def test_every_end_is_counted_once() -> None:
    async def buggy(call: Call, emit: Emit) -> None:
        raise ZeroDivisionError

    assert 'outcome="ok"} 1.0' in await _outcome(answering)
    assert 'outcome="cancelled"} 1.0' in await _outcome(hanging(WORD))
    assert 'outcome="upstream_error"} 1.0' in await _outcome(failing(UpstreamFailed()))
    assert 'outcome="internal_error"} 1.0' in await _outcome(buggy)


async def test_a_bug_becomes_an_internal_error_without_details() -> None:
    async def buggy(call: Call, emit: Emit) -> None:
        raise ZeroDivisionError("secret")

    with pytest.raises(InternalError) as caught:
        await build([Trace(Metrics())], buggy)(make_call("chat"), Collector())
    assert "secret" not in caught.value.message


async def _no_keep(tenant: str, data: bytes, ending: str) -> str:
    raise AssertionError(ending)


async def _no_fetch(url: str) -> Fetched:
    raise AssertionError(url)


class Whole:
    """Every ring over real parts in memory, around one handler."""

    def __init__(self, folder: Path, infer: Handler, limits: PipelineLimits) -> None:
        def known() -> Directory:
            return directory(endpoint(infer))

        quota = Quota("quo_1", TESTER.tenant_id, "key", TESTER.key_id, Unit.CONCURRENT, Window.NOW, 1)
        self.limiter = Limiter(MemoryCounters(), lambda: QuotaBook([quota]))
        self.spool = Spool(folder, 64 * 1024**2)
        self.handler = build_pipeline(
            known,
            Metrics(),
            limits,
            router=Router(RouterLimits()),
            limiter=self.limiter,
            meter=Meter(self.spool, PriceBook, self.limiter.settle),
            cache=Cache(TieredAnswers(MemoryAnswers(2**20), None), known, ttl_s=60),
            media=Media(_no_fetch, MediaPool().clean_image),
            links=Links(_no_keep),
            cost=lambda *_: 0,
        )

    async def status(self) -> str:
        """Of the only event in the ledger."""
        found: list[UsageEvent] = []

        class Taker:
            name = "taker"
            wants_begins = False

            async def take(self, records: Sequence[Record], token: str) -> None:
                found.extend(record for record in records if isinstance(record, UsageEvent))

        feed = Feed(self.spool, Taker(), 1000)
        while feed.behind_bytes:
            assert await feed.step() is not None
        self.spool.close()
        (event,) = found
        return event.status


async def test_the_whole_pipeline_answers(tmp_path: Path) -> None:
    emit = Collector()
    whole = Whole(tmp_path / "0", answering, PipelineLimits())
    await whole.handler(make_call("chat", "m"), emit)
    first, *rest = emit.chunks
    assert isinstance(first, Started)
    assert (first.model, first.endpoint, first.readings[0].remaining) == ("m", "w1", 0)
    assert rest == [WORD, END]
    assert await whole.status() == "ok"
    assert whole.limiter.open == 0


async def test_the_ledger_learns_that_time_ran_out(tmp_path: Path) -> None:
    """So does the client, with how full its limits are."""
    whole = Whole(tmp_path / "0", hanging(WORD), PipelineLimits(idle_timeout_s=0.05))
    with pytest.raises(EndpointStalled, match="idle_timeout_s") as caught:
        await whole.handler(make_call("chat", "m"), Collector())
    assert caught.value.readings[0].remaining == 0
    assert await whole.status() == "endpoint_stalled"
    assert whole.limiter.open == 0
