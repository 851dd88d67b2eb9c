"""Everything that counts, bills and remembers behind a gateway: opened from the settings, run, and closed.

Used by assembly alone, which knows the rest. A store that is away at the start is waited for in the
background: only what cannot be right (a wrong address, a damaged file) stops the start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from inferhub.core.errors import InferHubError, SetupError
from inferhub.core.prices import PriceBook, nano_usd
from inferhub.core.quota import Quota
from inferhub.core.tenancy import Tenant
from inferhub.core.usage import Begin, LostEvent, Usage, UsageEvent
from inferhub.egress import Fetcher
from inferhub.gateway.alerts import Alerts
from inferhub.pipeline.limiter import Failsafe, Leased, Limiter, QuotaBook
from inferhub.settings import Settings
from inferhub.stores import open_answers, open_counters, open_events, open_responses, open_usage
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.stores.counters.base import Counters
from inferhub.stores.events.base import EventStream
from inferhub.stores.events.consumer import EventConsumer
from inferhub.stores.late import LateEvents, LateResponses, LateUsage
from inferhub.stores.responses.base import ResponseStore
from inferhub.stores.spool.drain import Backlog, Drain
from inferhub.stores.spool.feed import Consumer
from inferhub.stores.spool.slots import Spools, open_spool
from inferhub.stores.spool.spool import Spool
from inferhub.stores.usage.base import UsageStore
from inferhub.stores.usage.consumer import UsageConsumer
from inferhub.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_FLUSH_S = 5.0
_WATCH_EVERY_S = 1.0
_LOCAL_TIMEOUT_S = 2.0
_PING_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Known:
    """Snapshots of what the catalog says, each to be asked anew."""

    budgets: Callable[[], Sequence[Quota]]
    book: Callable[[], QuotaBook]
    prices: Callable[[], PriceBook]
    tenants: Callable[[], Sequence[Tenant]]
    model_of: Callable[[str], str]
    """Name that a call asks for → the model behind it, whose price counts."""
    is_current: Callable[[], bool]
    """False while the catalog cannot be read."""


class Pinged(Protocol):
    async def ping(self) -> None: ...


class Watched:
    """A store, mostly behind the ledger: in order while it takes what comes, and answers when it is asked.

    Asked, because without calls nothing comes, and its outage would be seen with the next one only.
    """

    def __init__(self, name: str, store: Pinged, drain: Drain | None = None) -> None:
        self.name = name
        self._store = store
        self._drain = drain
        self._answers = not isinstance(store, LateUsage | LateEvents | LateResponses)

    def state(self) -> Literal["ok", "failing"]:
        has_refused = self._drain is not None and self._drain.backlog(self.name).is_failing
        return "failing" if has_refused or not self._answers else "ok"

    async def run(self) -> None:
        while True:
            try:
                await self._store.ping()
                self._answers = True
            except InferHubError as error:
                if self._answers:
                    _log.warning("%s: %s", self.name, error.message)
                self._answers = False
            await asyncio.sleep(_PING_EVERY_S)


@dataclass(frozen=True, slots=True)
class Accounting:
    """The open parts. `run` belongs into the task group of the gateway."""

    counters: Counters
    limiter: Limiter
    ledger: Spool
    answers: TieredAnswers
    usage: UsageStore
    responses: ResponseStore
    drain: Drain
    alerts: Alerts
    _known: Known
    _failsafe: Failsafe
    _leased: Leased
    _watched: Sequence[Watched]

    def services(self, metrics: Metrics) -> tuple[Coroutine[Any, Any, None], ...]:
        """To be run until the gateway ends."""
        return (
            self.limiter.run(),
            self._leased.run(),
            self.drain.run(),
            self.alerts.run(),
            self._watch(metrics),
            *(store.run() for store in self._watched),
        )

    async def flush(self) -> None:
        """After the last call, before the services end: hand on what was written down."""
        await self.limiter.close()
        if not await self.drain.flush(_FLUSH_S):
            _log.warning("usage stays in the spool until the next start: its store does not take it")

    def health(self) -> Mapping[str, object]:
        """For `/readyz?verbose`: in which mode each store is used, and what waits for it."""
        return {
            **self._states(),
            "ledger": {name: _card(self.drain.backlog(name)) for name in self.drain.consumers},
        }

    def _states(self) -> dict[str, str]:
        return {
            "counters": self._failsafe.state(),
            "answers": self.answers.state(),
            **{store.name: store.state() for store in self._watched},
        }

    async def _watch(self, metrics: Metrics) -> None:
        """Keep the gauges of the stores current."""
        while True:
            metrics.store_up.labels("catalog").set(self._known.is_current())
            for name, state in self._states().items():
                metrics.store_up.labels(name).set(state == "ok")
            backlog = self.drain.backlog()
            metrics.spool_bytes.set(backlog.bytes)
            metrics.spool_oldest.set(backlog.oldest_s)
            await asyncio.sleep(_WATCH_EVERY_S)


def _card(backlog: Backlog) -> Mapping[str, object]:
    return {"backlog_bytes": backlog.bytes, "oldest_s": round(backlog.oldest_s, 1)}


@asynccontextmanager
async def open_accounting(settings: Settings, pepper: bytes, known: Known) -> AsyncIterator[Accounting]:
    """Raises `SetupError` with the setting that has to be mended."""
    async with AsyncExitStack() as stack:
        timeout_s = settings.counters_timeout_s
        if not settings.counters_url.startswith("redis"):
            # A file of this machine is not away when it is slow: the machine is busy, and a limit that
            # every process counts for itself would be a worse answer than a late one.
            timeout_s = max(timeout_s, _LOCAL_TIMEOUT_S)
        failsafe = Failsafe(
            await open_counters(settings.counters_url, timeout_s=timeout_s),
            gateways_expected=max(settings.gateways_expected, settings.processes),
            timeout_s=timeout_s,
        )
        counters = Leased(failsafe)
        # Closes all that is below it, too.
        stack.push_async_callback(counters.close)
        limiter = Limiter(counters, known.book)
        # Before the blocks go back that running calls spend from; again here, for a start that failed.
        stack.push_async_callback(limiter.close)
        answers = await open_answers(
            settings.cache_url, pepper=pepper, memory_bytes=settings.cache_memory_bytes
        )
        stack.push_async_callback(answers.close)
        responses = await _responses(settings, pepper)
        stack.push_async_callback(responses.close)
        behind = await _open_behind(stack, settings)
        spools = _open_spools(stack, settings, known)
        consumers: list[Consumer] = [UsageConsumer(behind.usage), LateCharges(limiter)]
        if behind.events is not None:
            consumers.append(EventConsumer(behind.events))
        drain = Drain(spools.own, consumers, orphans=spools.orphans)
        fetcher = Fetcher(allow=settings.egress_allow)
        stack.push_async_callback(fetcher.close)
        yield Accounting(
            counters=counters,
            limiter=limiter,
            ledger=spools.own,
            answers=answers,
            usage=behind.usage,
            responses=responses,
            drain=drain,
            alerts=Alerts(
                budgets=known.budgets,
                tenants=known.tenants,
                read=counters.read,
                post=fetcher.post,
                publish=behind.events.publish if behind.events is not None else None,
                marks=answers,
                pepper=pepper,
            ),
            _known=known,
            _failsafe=failsafe,
            _leased=counters,
            _watched=(*behind.watched_by(drain), Watched("responses", responses)),
        )


@dataclass(frozen=True, slots=True)
class _Behind:
    """The stores that the ledger is emptied into."""

    usage: UsageStore
    events: EventStream | None

    def watched_by(self, drain: Drain) -> tuple[Watched, ...]:
        usage = Watched(UsageConsumer.name, self.usage, drain)
        return (usage,) if self.events is None else (usage, Watched(EventConsumer.name, self.events, drain))


async def _open_behind(stack: AsyncExitStack, settings: Settings) -> _Behind:
    usage = await _usage(settings.usage_url)
    stack.push_async_callback(usage.close)
    events = await _events(settings.events_url) if settings.events_url else None
    if events is not None:
        stack.push_async_callback(events.close)
    return _Behind(usage, events)


def _open_spools(stack: AsyncExitStack, settings: Settings, known: Known) -> Spools:
    def bill(name: str, used: Usage, at_s: int) -> tuple[Decimal, str]:
        return known.prices().bill(known.model_of(name), used, at_s)

    spools = open_spool(settings.spool_dir, settings.spool_max_bytes, fsync=settings.spool_fsync, bill=bill)
    for spool in (spools.own, *spools.orphans):
        stack.callback(spool.close)
    return spools


class LateCharges:
    """Charges budgets for calls that a crash cut off, when their end is found in the spool."""

    name = "budgets"
    wants_begins = False

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter

    async def take(self, records: Sequence[Begin | UsageEvent], token: str) -> None:
        """Raises `StoreFailed`; a call is charged once, however often it comes."""
        for record in records:
            if isinstance(record, LostEvent) and record.meters:
                await self._limiter.charge(record.id, record.meters, nano_usd(record.cost_usd))


async def _usage(url: str) -> UsageStore:
    try:
        return await open_usage(url)
    except SetupError as error:
        if error.wire_code != "store_unreachable":
            raise
        _log.warning("%s Usage is kept in the spool until it answers.", error.message)
        return LateUsage(lambda: open_usage(url))


async def _events(url: str) -> EventStream:
    try:
        return await open_events(url)
    except SetupError as error:
        if error.wire_code != "store_unreachable":
            raise
        _log.warning("%s Events are kept in the spool until it answers.", error.message)
        return LateEvents(lambda: open_events(url))


async def _responses(settings: Settings, pepper: bytes) -> ResponseStore:
    url, max_bytes = settings.responses_url, settings.responses_max_bytes
    try:
        return await open_responses(url, pepper=pepper, max_bytes=max_bytes)
    except SetupError as error:
        if error.wire_code != "store_unreachable":
            raise
        _log.warning("%s Responses are not kept until it answers.", error.message)
        return LateResponses(lambda: open_responses(url, pepper=pepper, max_bytes=max_bytes))
