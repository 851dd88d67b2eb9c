"""The meter ring: one begin and one event a call, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import pytest

from inferhub.core.call import Call, Chunk, Delta, Emit, Failed, Finished, Handler, Started
from inferhub.core.errors import (
    ContentFiltered,
    DeadlineExceeded,
    EndpointLost,
    InferHubError,
    Invalid,
    LedgerFull,
    Overloaded,
    StoreFailed,
)
from inferhub.core.prices import PriceBook
from inferhub.core.quota import Claim, Reservation, Unit, Window
from inferhub.core.quota import Meter as QuotaMeter
from inferhub.core.usage import LostEvent, Price, Usage, UsageEvent
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.chat.deltas import FunctionDelta, ToolCallDelta
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.modalities.speech import SpeechDelta, SpeechRequest
from inferhub.modalities.token_count import TokenCount
from inferhub.pipeline.deadline import Deadline
from inferhub.pipeline.meter import Meter, input_tokens
from inferhub.pipeline.onion import build
from inferhub.stores.spool.feed import Feed
from inferhub.stores.spool.frames import Record
from inferhub.stores.spool.spool import Spool
from inferhub.testing.calls import Collector, make_call

MIB = 1024**2
WORD = Delta(ChatDelta(content="canary-answer"))
LAST = Delta(ChatDelta(finish_reason="stop"))
START = Started("resolved", "worker-1", attempt=2)
PRICE = Price(
    model="resolved",
    version="v1",
    valid_from=0,
    input_token=Decimal("0.001"),
    cached_token=Decimal("0.0001"),
    output_token=Decimal("0.01"),
    reasoning_token=Decimal("0.02"),
)


@dataclass
class Bench:
    """A meter over a real spool, and what came out of it."""

    spool: Spool
    settled: list[tuple[str, Usage, int]] = field(default_factory=list)
    store_is_down: bool = False
    book: PriceBook = field(default_factory=lambda: PriceBook([PRICE]))

    def meter(self) -> Meter:
        return Meter(self.spool, lambda: self.book, self._settle)

    async def _settle(self, reservation: Reservation, usage: Usage, nano: int) -> None:
        if self.store_is_down:
            raise StoreFailed
        self.settled.append((reservation.id, usage, nano))

    async def events(self) -> list[UsageEvent]:
        taken: list[UsageEvent] = []

        class Taker:
            name = "taker"
            wants_begins = False

            async def take(self, records: Sequence[Record], token: str) -> None:
                taken.extend(record for record in records if isinstance(record, UsageEvent))

        feed = Feed(self.spool, Taker(), 1000)
        while feed.behind_bytes:
            assert await feed.step() is not None
        return taken

    async def run(self, inner: Handler, call: Call | None = None) -> tuple[UsageEvent, Collector]:
        collector = Collector()
        with suppress(InferHubError, ZeroDivisionError, asyncio.CancelledError):
            await self.meter()(call or held(make_call("chat")), collector, inner)
        (event,) = await self.events()
        return event, collector


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    spool = Spool(tmp_path / "0", 64 * MIB)
    yield Bench(spool)
    assert spool.open_calls == 0
    assert not spool.is_closed
    spool.close()
    content = b"".join(path.read_bytes() for path in (tmp_path / "0").iterdir())
    assert b"canary" not in content


def held(call: Call) -> Call:
    claims = (
        Claim(QuotaMeter("key:ih_tester:usd:day", Unit.USD, Window.DAY, 5), 3),
        Claim(QuotaMeter("key:ih_tester:tokens:minute", Unit.TOKENS, Window.MINUTE, 5), 3),
    )
    return replace(call, reservation=Reservation("res_1", claims, (), 0.0))


def saying(*chunks: object, then: Exception | None = None) -> Handler:
    async def inner(call: Call, emit: Emit) -> None:
        for chunk in chunks:
            await emit(chunk)  # type: ignore[arg-type]
        if then:
            raise then

    return inner


async def test_a_finished_call_is_billed_as_reported(bench: Bench) -> None:
    usage = Usage(10, 6, 4, 1, audio_ms=5, characters=6, images=7, pixels=8)
    event, seen = await bench.run(saying(START, WORD, WORD, LAST, Finished(usage)))
    expected = Decimal("0.006") + Decimal("0.0004") + Decimal("0.05") + Decimal("0.02")
    assert seen.chunks[-1] == Finished(usage, expected)
    assert (event.status, event.source, event.cost_usd, event.price_version) == (
        "ok",
        "reported",
        expected,
        "v1",
    )
    assert (event.input_tokens, event.cached_tokens, event.output_tokens, event.reasoning_tokens) == (
        6,
        4,
        5,
        1,
    )
    assert event.total_tokens == 16
    assert (event.audio_ms, event.characters, event.images, event.pixels) == (5, 6, 7, 8)
    assert (event.model, event.requested_model, event.endpoint, event.attempts) == (
        "resolved",
        "m",
        "worker-1",
        2,
    )
    assert event.id.startswith("call_")
    assert event.first_token_ms is not None
    assert 0 <= event.first_token_ms <= event.latency_ms
    assert bench.settled == [("res_1", usage, 76_400_000)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_does_not_count_is_not_free(bench: Bench, stream: bool) -> None:
    """The client is told what was reported: nothing."""
    unknown = Usage(source="unknown")
    call = make_call("chat", stream=stream)
    event, seen = await bench.run(saying(START, WORD, WORD, LAST, Finished(unknown)), held(call))
    assert (event.status, event.source) == ("ok", "estimated")
    # Streamed, each piece is a token; else there may be many in one.
    assert (event.input_tokens, event.output_tokens) == (input_tokens(call), 2 if stream else 26 // 4)
    assert event.cost_usd == input_tokens(call) * PRICE.input_token + event.output_tokens * PRICE.output_token
    assert seen.chunks[-1] == Finished(unknown, event.cost_usd)
    assert bench.settled[0][1].output_tokens == event.output_tokens


async def test_a_tool_call_that_nobody_counted_is_text_too(bench: Bench) -> None:
    call = ToolCallDelta(index=0, id="1", function=FunctionDelta("f", '{"x": "' + "y" * 400 + '"}'))
    event, _ = await bench.run(
        saying(
            START,
            Delta(ChatDelta(tool_calls=[call], finish_reason="tool_calls")),
            Finished(Usage(source="unknown")),
        )
    )
    assert 100 < event.output_tokens < 150


async def test_a_count_of_tokens_is_free_whatever_a_request_costs(tmp_path: Path) -> None:
    dear = replace(PRICE, request=Decimal(1))
    spool = Spool(tmp_path / "0", 64 * MIB)
    bench = Bench(spool, book=PriceBook([dear]))
    event, _ = await bench.run(
        saying(START, Delta(TokenCount(7)), Finished(Usage())), make_call("token_count")
    )
    assert (event.status, event.cost_usd, event.price_version) == ("ok", Decimal(0), "")
    spool.close()


async def test_a_model_without_a_price_costs_nothing(bench: Bench) -> None:
    event, seen = await bench.run(saying(Started("free", "w"), WORD, Finished(Usage(1, 1))))
    assert seen.chunks[-1] == Finished(Usage(1, 1))
    assert (event.cost_usd, event.price_version) == (Decimal(0), "")


async def test_a_broken_stream_is_billed_for_what_was_delivered(bench: Bench) -> None:
    event, _ = await bench.run(saying(START, WORD, WORD, WORD, LAST, then=EndpointLost()))
    prompt = input_tokens(make_call("chat"))
    assert (event.status, event.source, event.input_tokens, event.output_tokens) == (
        "endpoint_lost",
        "estimated",
        prompt,
        3,
    )
    assert event.cost_usd == prompt * Decimal("0.001") + Decimal("0.03")
    assert bench.settled[0][1].output_tokens == 3


@pytest.mark.parametrize(
    ("error", "source", "status"),
    [
        (Invalid(), "reported", "invalid_value"),
        (Overloaded(), "reported", "overloaded"),
        (EndpointLost(), "unknown", "endpoint_lost"),
        (ZeroDivisionError(), "unknown", "internal_error"),
    ],
)
async def test_what_failed_before_it_began_costs_nothing(
    bench: Bench, error: Exception, source: str, status: str
) -> None:
    event, _ = await bench.run(saying(then=error))
    assert (event.status, event.source, event.total_tokens, event.cost_usd) == (status, source, 0, Decimal(0))
    assert event.first_token_ms is None
    assert [(usage.total_tokens, nano) for _, usage, nano in bench.settled] == [(0, 0)]


async def test_a_failed_attempt_before_a_refusal_leaves_doubt(bench: Bench) -> None:
    error = Overloaded()
    error.attempts, error.endpoint = 2, "worker-2"
    event, _ = await bench.run(saying(then=error))
    assert (event.source, event.attempts, event.endpoint) == ("unknown", 2, "worker-2")


@pytest.mark.parametrize(
    ("earlier", "source"), [("upstream_rate_limited", "reported"), ("endpoint_lost", "unknown")]
)
async def test_the_trail_tells_whether_an_earlier_attempt_computed_anything(
    bench: Bench, earlier: str, source: str
) -> None:
    error = ContentFiltered()
    error.attempts, error.trail = 2, (Failed("worker-1", earlier, 0.1),)
    event, _ = await bench.run(saying(then=error))
    assert (event.source, event.attempts) == (source, 2)


async def test_pieces_that_say_nothing_are_not_billed(bench: Bench) -> None:
    silence = Delta(ChatDelta(), b": still here\n\n")
    event, _ = await bench.run(saying(START, silence, WORD, silence, then=EndpointLost()))
    assert event.output_tokens == 1


async def test_a_hang_up_is_billed_for_what_was_delivered(bench: Bench) -> None:
    delivered = asyncio.Event()

    async def inner(call: Call, emit: Emit) -> None:
        await emit(START)
        for _ in range(5):
            await emit(WORD)
        delivered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(bench.run(inner))
    await delivered.wait()
    task.cancel()
    event, _ = await task
    assert (event.status, event.source, event.output_tokens) == ("cancelled", "estimated", 5)
    assert len(bench.settled) == 1


@pytest.mark.parametrize(
    ("said", "source", "tokens"),
    [((), "unknown", 0), ((START, WORD), "estimated", 1)],
    ids=["before the first token", "after it"],
)
async def test_a_call_that_ran_out_of_time_says_so(
    bench: Bench, said: tuple[Chunk, ...], source: str, tokens: int
) -> None:
    async def inner(call: Call, emit: Emit) -> None:
        for chunk in said:
            await emit(chunk)
        await asyncio.Event().wait()

    event, _ = await bench.run(build([Deadline()], inner), make_call("chat", timeout_s=-1))
    assert (event.status, event.source, event.output_tokens) == ("timeout", source, tokens)


async def test_a_hang_up_past_the_deadline_is_a_hang_up(bench: Bench) -> None:
    """Whoever cancels from outside of the deadline ring is not the deadline."""

    async def inner(call: Call, emit: Emit) -> None:
        raise asyncio.CancelledError

    event, _ = await bench.run(inner, make_call("chat", timeout_s=-1))
    assert event.status == "cancelled"


async def test_a_hang_up_after_the_end_is_billed_in_full(bench: Bench) -> None:
    async def inner(call: Call, emit: Emit) -> None:
        await saying(START, WORD, Finished(Usage(10, 1)))(call, emit)
        raise asyncio.CancelledError

    event, _ = await bench.run(inner)
    assert (event.status, event.source, event.input_tokens) == ("cancelled", "reported", 10)


async def test_a_cached_answer_is_free(bench: Bench) -> None:
    hit = replace(START, cache="hit")
    event, seen = await bench.run(saying(hit, WORD, Finished(Usage(10, 6))))
    assert seen.chunks[-1] == Finished(Usage(10, 6), Decimal(0))
    assert (event.cache, event.total_tokens, event.cost_usd, event.status) == ("hit", 0, Decimal(0), "ok")
    assert bench.settled == [("res_1", Usage(), 0)]


@pytest.mark.parametrize("usage", [Usage(5, 5, 9, 0), Usage(5, 5, 0, 9), Usage(-5, 5), Usage(2**80, 5)])
async def test_impossible_usage_is_mended_and_called_an_estimate(
    bench: Bench, usage: Usage, caplog: pytest.LogCaptureFixture
) -> None:
    meter = bench.meter()
    for _ in range(3):
        await meter(make_call("chat"), Collector(), saying(START, WORD, Finished(usage)))
    for event in await bench.events():
        parts = (event.input_tokens, event.cached_tokens, event.output_tokens, event.reasoning_tokens)
        assert event.source == "estimated"
        assert min(parts) >= 0
        assert event.total_tokens == sum(parts)
    assert caplog.text.count("impossible usage") == 1


async def test_a_kind_without_tokens_is_not_billed_by_the_delta(bench: Bench) -> None:
    vector = Delta(EmbeddingDelta(0, b"1234"))
    event, _ = await bench.run(saying(START, vector, vector, then=EndpointLost()), make_call("embedding"))
    assert (event.source, event.output_tokens, event.modality) == ("estimated", 0, "embedding")
    assert event.input_tokens > 0


@pytest.mark.parametrize(
    ("told", "billed"), [(7, 14), (0, 20)], ids=["as far as it was spoken", "all where nobody says how far"]
)
async def test_a_hang_up_in_the_middle_of_a_speech_is_not_free(bench: Bench, told: int, billed: int) -> None:
    call = make_call("speech")
    call = replace(call, request=SpeechRequest(input="t" * 20))
    piece = Delta(SpeechDelta(b"sound", 500, told))
    event, _ = await bench.run(saying(START, piece, piece, then=EndpointLost()), call)
    assert (event.characters, event.audio_ms, event.source) == (billed, 1000, "estimated")
    assert event.total_tokens == event.input_tokens == 0


async def test_a_speech_that_never_began_is_not_billed(bench: Bench) -> None:
    event, _ = await bench.run(saying(START, then=EndpointLost()), make_call("speech"))
    assert (event.characters, event.audio_ms) == (0, 0)


async def test_a_full_ledger_refuses_before_anything_is_asked(bench: Bench, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "full", 100)
    was_asked = False

    async def inner(call: Call, emit: Emit) -> None:
        nonlocal was_asked
        was_asked = True

    with pytest.raises(LedgerFull):
        await Bench(spool).meter()(make_call("chat"), Collector(), inner)
    assert not was_asked
    spool.close()


async def test_limits_that_cannot_be_settled_do_not_fail_the_call(bench: Bench) -> None:
    bench.store_is_down = True
    event, _ = await bench.run(saying(START, WORD, Finished(Usage(1, 1))))
    assert event.status == "ok"


async def test_with_fsync_both_records_are_on_the_disk(tmp_path: Path) -> None:
    bench = Bench(Spool(tmp_path / "0", 64 * MIB, fsync=True))
    event, _ = await bench.run(saying(START, WORD, Finished(Usage(1, 1))))
    assert event.status == "ok"
    bench.spool.close()


async def test_a_disk_that_hangs_ends_the_call_in_its_time(tmp_path: Path) -> None:
    class Stuck(Spool):
        async def sync(self) -> None:
            await asyncio.Event().wait()

    bench = Bench(Stuck(tmp_path / "0", 64 * MIB, fsync=True))
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="disk"):
        await asyncio.wait_for(
            bench.meter()(make_call("chat", timeout_s=0.05), Collector(), saying(START)), 60
        )
    assert time.monotonic() - begin < 30
    (event,) = await bench.events()
    assert (event.status, event.total_tokens) == ("timeout", 0)
    bench.spool.close()


async def test_a_killed_process_leaves_what_was_delivered(tmp_path: Path) -> None:
    bench = Bench(Spool(tmp_path / "0", 64 * MIB))
    delivered = asyncio.Event()

    async def inner(call: Call, emit: Emit) -> None:
        for chunk in (START, WORD, WORD):
            await emit(chunk)
        delivered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(bench.meter()(held(make_call("chat")), Collector(), inner))
    await delivered.wait()
    bench.spool.close()  # like a death: nobody writes the end
    recovered = Bench(Spool(tmp_path / "0", 64 * MIB))
    (lost,) = await recovered.events()
    assert isinstance(lost, LostEvent)
    assert (lost.status, lost.source, lost.output_tokens) == ("lost", "estimated", 2)
    assert lost.meters == ("key:ih_tester:usd:day",)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    recovered.spool.close()


def test_pictures_are_not_counted_as_text() -> None:
    picture = "data:image/png;base64," + "A" * 400_000
    parts = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": picture}}]
    assert input_tokens(make_call("chat", messages=[{"role": "user", "content": parts}])) < 100
    assert input_tokens(make_call("chat", messages=[{"role": "user", "content": "word " * 4000}])) > 4000
