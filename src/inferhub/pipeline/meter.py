"""Writes down what every call used and cost, before it begins and after it ended, whatever happened.

The only ring that knows money. Sits inside admission (whose reservation it settles) and around the
deadline, the cache and every attempt, so that a cancellation that comes this far is the client's or the
server's own end; keeps nothing of what was asked or answered.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

from msgspec.json import encode

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.errors import (
    BackendRefused,
    DeadlineExceeded,
    Draining,
    InferHubError,
    InternalError,
    LedgerFull,
    NoEndpoint,
    Overloaded,
    RequestError,
    UpstreamDenied,
    UpstreamRateLimited,
    family,
)
from inferhub.core.prices import PriceBook, cost, nano_usd
from inferhub.core.quota import Reservation, Unit
from inferhub.core.usage import Begin, Price, Usage, UsageEvent
from inferhub.modalities import modalities
from inferhub.pipeline.content import begun, has_content, with_media
from inferhub.stores.spool.spool import Spool

_log = logging.getLogger(__name__)

Settle = Callable[[Reservation, Usage, int], Awaitable[object]]
"""(reservation, what was really used, nano-dollars)."""

CANCELLED = "cancelled"

_WITHOUT_TOKENS = frozenset({"image", "speech", "transcription", "vision"})
"""Whoever counts tokens of these reports them; the bytes of a request say nothing about them."""

# Whoever raises these has computed nothing that anybody could bill.
_NOTHING_DONE: tuple[type[InferHubError], ...] = (
    RequestError,
    BackendRefused,
    Draining,
    LedgerFull,
    NoEndpoint,
    Overloaded,
    UpstreamDenied,
    UpstreamRateLimited,
)
_MAX_TEXT = 256
"""Characters of a client's own words, such as a model's name, that a record holds."""
_MAX_TOLD = 100
_SYNC_END_S = 5.0
"""For the disk to keep a call's end, where fsync is on."""


class Meter:
    """A ring. One `Begin` and one `UsageEvent` a call."""

    def __init__(
        self,
        ledger: Spool,
        prices: Callable[[], PriceBook],
        settle: Settle,
        estimate: Callable[[Call], int] | None = None,
    ) -> None:
        """`prices` returns the current book; `estimate` counts the tokens of a prompt without a tokenizer."""
        self._ledger = ledger
        self._prices = prices
        self._settle = settle
        self._estimate = estimate or input_tokens
        self._told: set[tuple[str, str]] = set()

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        book = self._prices()
        begin = _begin(call, 0 if call.modality in _WITHOUT_TOKENS else self._estimate(call))
        entry = self._ledger.begin(begin)
        seen = _Seen(begin, self._ledger.marks, entry, speaks_in_tokens=_speaks_in_tokens(call.modality))

        # Not a coroutine of its own: it runs for every token.
        def watch(chunk: Chunk) -> Awaitable[None]:
            if isinstance(chunk, Delta):
                seen.deliver(chunk.payload)
            elif isinstance(chunk, Finished):
                chunk = self._price(chunk, seen, book)
            else:
                seen.start(chunk)
            return emit(chunk)

        status = InternalError.code
        failure: BaseException | None = None
        try:
            if self._ledger.fsync:
                await self._sync(call.deadline_s - time.monotonic())
            await inner(call, watch)
            status = "ok"
        except asyncio.CancelledError as error:
            failure, status = error, CANCELLED
            raise
        except InferHubError as error:
            failure, status = error, error.code
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            await self._close(call, seen, status, failure, book)

    def _price(self, end: Finished, seen: _Seen, book: PriceBook) -> Finished:
        usage = end.usage.checked()
        if usage is not end.usage:
            self._tell(seen)
        # A provider that does not count is not free; the client is still told what was reported.
        billed = seen.guessed() if usage.source == "unknown" and seen.deltas else usage
        seen.usage = billed
        seen.price = _price_of(seen, book)
        if seen.is_hit:
            seen.cost_usd = Decimal(0)
        elif seen.price is not None:
            seen.cost_usd = cost(seen.price, billed)
        else:
            return end if usage is end.usage else replace(end, usage=usage)
        return Finished(usage, seen.cost_usd, end.raw)

    async def _close(
        self, call: Call, seen: _Seen, status: str, failure: BaseException | None, book: PriceBook
    ) -> None:
        usage = seen.usage
        if usage is None:
            usage = seen.interrupted(call, failure)
            if seen.started and usage != Usage(source=usage.source):
                seen.price = _price_of(seen, book)
                seen.cost_usd = cost(seen.price, usage) if seen.price else Decimal(0)
        billed = Usage(source=usage.source) if seen.is_hit else usage
        self._ledger.end(_event(seen, billed, status, failure))
        try:
            if self._ledger.fsync:
                await self._sync(_SYNC_END_S)
        except (LedgerFull, DeadlineExceeded):
            _log.error("a call's end may not survive a power failure", extra={"request_id": call.id})
        finally:
            if call.reservation is not None:
                await self._settle_safely(call, call.reservation, billed, nano_usd(seen.cost_usd))

    async def _sync(self, within_s: float) -> None:
        """Raises `LedgerFull`, or `DeadlineExceeded` where the disk does not answer in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._ledger.sync()
        except TimeoutError as error:
            raise DeadlineExceeded("The disk of the ledger did not answer in time.") from error

    async def _settle_safely(self, call: Call, held: Reservation, billed: Usage, nano: int) -> None:
        try:
            await self._settle(held, billed, nano)
        except InferHubError as error:
            # The event is written; what was held comes back when its lease runs out.
            _log.warning("limits were not settled: %s", error.message, extra={"request_id": call.id})

    def _tell(self, seen: _Seen) -> None:
        """One line for each model and endpoint whose figures contradict each other."""
        started = seen.started
        where = (started.model, started.endpoint) if started else ("", "")
        if where not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(where)
            _log.warning(
                "impossible usage was reported by %s; it counts as estimated",
                where[1],
                extra={"model": where[0]},
            )


class _Seen:
    """What passed by of one call."""

    __slots__ = (
        "begin", "cost_usd", "delivered", "deltas", "entry", "first_s", "is_hit", "marks", "price",
        "speaks_in_tokens", "started", "started_s", "tag", "usage", "whole",
    )  # fmt: skip

    def __init__(self, begin: Begin, marks: memoryview, entry: int, *, speaks_in_tokens: bool) -> None:
        self.begin = begin
        self.marks = marks
        self.entry = entry
        self.tag: int = marks[entry]
        self.speaks_in_tokens = speaks_in_tokens
        self.deltas = 0
        self.delivered = Usage()
        """Sound and pictures so far."""
        self.whole: list[Any] = []
        """The pieces of an answer that is not streamed; one of them may be all of it."""
        self.started: Started | None = None
        self.is_hit = False
        self.usage: Usage | None = None
        self.price: Price | None = None
        self.cost_usd = Decimal(0)
        self.started_s = time.perf_counter()
        self.first_s = 0.0

    def start(self, started: Started) -> None:
        self.started = started
        self.is_hit = started.cache == "hit"

    def deliver(self, payload: Any) -> None:
        """Count before the client can have it: what is billed is never less than what was received."""
        if not self.first_s:
            self.first_s = time.perf_counter()
        if self.speaks_in_tokens and has_content(payload):
            self.deltas = count = self.deltas + 1
            if not self.begin.is_stream:
                self.whole.append(payload)
            if not self.is_hit:
                self.marks[self.entry] = self.tag + count
        elif not self.speaks_in_tokens:
            self.delivered = with_media(self.delivered, payload)

    def guessed(self) -> Usage:
        """Usage of an answer that is complete, and that nobody counted."""
        text = sum(map(_text_chars, self.whole)) // _CHARS_PER_TOKEN
        return Usage(self.begin.input_tokens, max(self.deltas, text), source="estimated")

    def interrupted(self, call: Call, failure: BaseException | None) -> Usage:
        """Usage of an answer that never came to its clean end."""
        if self.is_hit:
            return Usage(source="estimated")
        if self.first_s:
            return replace(
                begun(self.delivered, call),
                input_tokens=self.begin.input_tokens,
                output_tokens=self.deltas,
                source="estimated",
            )
        return Usage(source="reported" if _did_nothing(failure) else "unknown")


def _begin(call: Call, estimate: int) -> Begin:
    caller = call.principal
    held = call.reservation.claims if call.reservation else ()
    return Begin(
        id=call.key,
        request_id=call.id[:_MAX_TEXT],
        at_ms=time.time_ns() // 1_000_000,
        tenant_id=caller.tenant_id,
        project_id=caller.project_id,
        key_id=caller.key_id,
        modality=call.modality,
        model=call.model[:_MAX_TEXT],
        is_stream=call.stream,
        input_tokens=estimate,
        meters=tuple(claim.meter.key for claim in held if claim.meter.unit is Unit.USD),
    )


def _price_of(seen: _Seen, book: PriceBook) -> Price | None:
    """The row that the call is billed by; None where the model, or what it was asked for, has no price."""
    begin, started = seen.begin, seen.started
    if started is None or modalities()[begin.modality].is_free:
        return None
    return book.at(started.model, begin.at_ms / 1000)


def _event(seen: _Seen, usage: Usage, status: str, failure: BaseException | None) -> UsageEvent:
    begin, started = seen.begin, seen.started
    ended_s = time.perf_counter()
    attempts, endpoint = (started.attempt, started.endpoint) if started else (1, "")
    if isinstance(failure, InferHubError):
        attempts, endpoint = max(attempts, failure.attempts), endpoint or failure.endpoint or ""
    return UsageEvent(
        id=begin.id,
        request_id=begin.request_id,
        at_ms=begin.at_ms,
        tenant_id=begin.tenant_id,
        project_id=begin.project_id,
        key_id=begin.key_id,
        modality=begin.modality,
        model=started.model[:_MAX_TEXT] if started else begin.model,
        requested_model=begin.model,
        endpoint=endpoint[:_MAX_TEXT],
        status=status,
        attempts=attempts,
        is_stream=begin.is_stream,
        cache=started.cache if started else "",
        source=usage.source,
        input_tokens=usage.input_tokens - usage.cached_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens - usage.reasoning_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        total_tokens=usage.total_tokens,
        audio_ms=usage.audio_ms,
        characters=usage.characters,
        images=usage.images,
        pixels=usage.pixels,
        latency_ms=round((ended_s - seen.started_s) * 1000, 3),
        first_token_ms=round((seen.first_s - seen.started_s) * 1000, 3) if seen.first_s else None,
        cost_usd=seen.cost_usd,
        price_version=seen.price.version if seen.price else "",
    )


def _did_nothing(failure: BaseException | None) -> bool:
    """Whether neither the last attempt nor one before it, which may have got further, computed anything."""
    if not isinstance(failure, _NOTHING_DONE) or len(failure.trail) != failure.attempts - 1:
        return False
    return all(failed.code in _nothing_done_codes() for failed in failure.trail)


@cache
def _nothing_done_codes() -> frozenset[str]:
    return frozenset(kind.code for root in _NOTHING_DONE for kind in family(root))


@cache
def _speaks_in_tokens(modality: str) -> bool:
    """Whether each delta is about a token: so it is where the last one says why the text ends."""
    return "finish_reason" in modalities()[modality].delta.__struct_fields__


def _text_chars(payload: Any) -> int:
    names = ("content", "text", "reasoning_content", "refusal")
    calls = getattr(payload, "tool_calls", None)
    return sum(len(getattr(payload, name, None) or "") for name in names) + (
        len(encode(calls)) if calls else 0
    )


_CHARS_PER_TOKEN = 4
_BYTES_PER_TOKEN = 4
_LONG_BYTES = 4096
_ENCODED = re.compile(rb"[A-Za-z0-9+/=_-]{1024,}")


def input_tokens(call: Call) -> int:
    """About a token for four bytes of the request; encoded pictures and sound are no text."""
    body = call.body
    size = len(body)
    if size > _LONG_BYTES:
        size -= sum(match.end() - match.start() for match in _ENCODED.finditer(body))
    return max(1, size // _BYTES_PER_TOKEN)
