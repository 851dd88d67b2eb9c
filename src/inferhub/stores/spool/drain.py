"""Carries records from the spool to the stores behind it: in order, in batches, until they have them.

Run by assembly. A batch that was offered once is offered again with the same boundaries and the same
token, also after a crash, so that a store can tell a repetition from news. Never drops anything.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from inferhub.stores.spool.feed import Consumer, Feed
from inferhub.stores.spool.spool import Spool

BATCH_RECORDS = 1000
LINGER_S = 0.2
MAX_BACKOFF_S = 10.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one consumer, or the slowest of all, has not taken yet."""

    bytes: int
    oldest_s: float
    """Age of its oldest record."""
    is_failing: bool
    """Whether its last batch did not get through."""


class Drain:
    """Empties one spool, and the orphans that were found beside it."""

    def __init__(
        self,
        spool: Spool,
        consumers: Sequence[Consumer],
        *,
        orphans: Sequence[Spool] = (),
        batch_records: int = BATCH_RECORDS,
        linger_s: float = LINGER_S,
    ) -> None:
        """`batch_records` bounds begins and ends together. Without consumers records are let go of."""
        self._spool = spool
        self._linger_s = linger_s
        self._hurry = asyncio.Event()
        self.consumers = tuple(consumer.name for consumer in consumers)
        self._own = [Feed(spool, c, batch_records) for c in consumers]
        self._left = {o: [Feed(o, c, batch_records) for c in consumers] for o in orphans}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_house())
            for feed in self._own:
                group.create_task(self._follow(feed))
            for orphan, feeds in tuple(self._left.items()):
                group.create_task(self._empty(orphan, feeds))

    def backlog(self, consumer: str | None = None) -> Backlog:
        """Of one consumer, or of all together, with the orphans; cheap enough for every scrape."""
        feeds = [*self._own, *(feed for feeds in tuple(self._left.values()) for feed in feeds)]
        feeds = [feed for feed in feeds if consumer in (None, feed.name)]
        waiting = [feed for feed in feeds if feed.behind_bytes]
        now_ms = time.time() * 1000
        oldest_ms = min((feed.oldest_ms() or now_ms for feed in waiting), default=now_ms)
        return Backlog(
            bytes=max((feed.behind_bytes for feed in waiting), default=0),
            oldest_s=max(0.0, (now_ms - oldest_ms) / 1000),
            is_failing=any(feed.is_failing for feed in feeds),
        )

    async def flush(self, timeout_s: float) -> bool:
        """While `run` runs: stop lingering and backing off, and wait until everything was taken."""
        end = time.monotonic() + timeout_s
        self._hurry.set()
        try:
            while self._spool.unwritten or self.backlog().bytes:
                if time.monotonic() >= end:
                    return False
                await asyncio.sleep(0.01)
            return True
        finally:
            self._hurry.clear()

    async def _follow(self, feed: Feed) -> None:
        failures = 0
        while True:
            outcome = await feed.step()
            failures = failures + 1 if outcome is None else 0
            if outcome is None:
                await self._pause(_backoff_s(failures))
            elif outcome < feed.batch_records:
                await self._pause(self._linger_s)

    async def _empty(self, orphan: Spool, feeds: Sequence[Feed]) -> None:
        failures = 0
        while any(feed.behind_bytes for feed in feeds):
            outcomes = [await feed.step() for feed in feeds]
            failures = failures + 1 if None in outcomes else 0
            if failures:
                await self._pause(_backoff_s(failures))
        if feeds:
            orphan.clear()
        del self._left[orphan]

    async def _keep_house(self) -> None:
        while True:
            await self._pause(self._linger_s)
            self._spool.retry()
            newest = self._spool.segments[-1].number
            self._spool.release(min((feed.segment for feed in self._own), default=newest))

    async def _pause(self, seconds: float) -> None:
        """Cut short by `flush`, but never to nothing: a store that is down is not asked in a tight loop."""
        if self._hurry.is_set():
            seconds = min(seconds, 0.01)
        if seconds <= 0.01:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


def _backoff_s(failures: int) -> float:
    jitter = 0.5 + random.random() / 2  # noqa: S311 - jitter, not a secret
    return min(MAX_BACKOFF_S, 0.1 * float(1 << min(failures, 10))) * jitter
