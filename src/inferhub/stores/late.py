"""Stores that were away when the process started: opened as soon as they answer.

Made by `accounting`. Until then every method raises `StoreFailed`, as it would for a store that died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.usage import UsageEvent
from inferhub.stores.events.base import Event, EventStream
from inferhub.stores.responses.base import ResponseStore, Stored
from inferhub.stores.usage.base import Dimension, Interval, Page, Step, UsageFilter, UsageStore

_log = logging.getLogger(__name__)


class _Closable(Protocol):
    async def close(self) -> None: ...


S = TypeVar("S", bound=_Closable)


class _Late(Generic[S]):
    """Opens on use. Whoever comes while it is being opened waits for that one try, not for one of his own."""

    def __init__(self, opener: Callable[[], Awaitable[S]]) -> None:
        self._opener = opener
        self._store: S | None = None
        self._opening: asyncio.Task[S] | None = None

    async def _get(self) -> S:
        if self._store is not None:
            return self._store
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="late store")
        try:
            # A caller that is cancelled must not leave a half-opened store behind.
            return await asyncio.shield(self._opening)
        except SetupError as error:
            raise StoreFailed(error.message) from error

    async def _open(self) -> S:
        self._store = await self._opener()
        _log.warning("a store that was away at the start answers now: %s", type(self._store).__name__)
        return self._store

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._store is not None:
            await self._store.close()


class LateUsage(_Late[UsageStore]):
    """A `UsageStore`."""

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        await (await self._get()).write(events, token=token)

    async def summary(
        self,
        where: UsageFilter,
        by: Sequence[Dimension],
        *,
        after: tuple[str, ...] | None = None,
        limit: int = 100,
    ) -> Page:
        return await (await self._get()).summary(where, by, after=after, limit=limit)

    async def events(
        self, where: UsageFilter, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> tuple[UsageEvent, ...]:
        return await (await self._get()).events(where, after=after, limit=limit)

    async def timeline(
        self, where: UsageFilter, step: Step, *, after_ms: int | None = None, limit: int = 100
    ) -> tuple[Interval, ...]:
        return await (await self._get()).timeline(where, step, after_ms=after_ms, limit=limit)

    async def ping(self) -> None:
        await (await self._get()).ping()


class LateEvents(_Late[EventStream]):
    """An `EventStream`."""

    async def publish(self, events: Sequence[Event]) -> None:
        await (await self._get()).publish(events)

    async def ping(self) -> None:
        await (await self._get()).ping()


class LateResponses(_Late[ResponseStore]):
    """A `ResponseStore`."""

    async def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        await (await self._get()).put(owner, stored, ttl_s)

    async def chain(
        self, owner: str, response_id: str, *, max_depth: int, max_bytes: int
    ) -> tuple[Stored, ...]:
        store = await self._get()
        return await store.chain(owner, response_id, max_depth=max_depth, max_bytes=max_bytes)

    async def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        return await (await self._get()).holding(owner, item_ids)

    async def delete(self, owner: str, response_id: str) -> bool:
        return await (await self._get()).delete(owner, response_id)

    async def ping(self) -> None:
        await (await self._get()).ping()
