"""The view of the fleet as gateways see it: made when somebody looks, and shown to all who watch.

`service` says when something changed. Who watches slowly misses steps, never the newest; nothing is queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferhub.core.fleet import FleetView, Member

MIN_INTERVAL_S = 0.1
"""Between two views for one watcher."""


class Board:
    def __init__(self, epoch: str, members: Callable[[], tuple[Member, ...]]) -> None:
        self._epoch = epoch
        self._members = members
        self._view = FleetView(epoch)
        self._is_stale = True
        self._news = asyncio.Event()

    def changed(self) -> None:
        self._is_stale = True
        self._news.set()

    def view(self) -> FleetView:
        if self._is_stale:
            self._is_stale = False
            self._view = FleetView(self._epoch, self._view.revision + 1, self._members())
        return self._view

    async def next(self, seen: FleetView | None) -> FleetView:
        """The first view at once; after it the newest, as soon as there is another one."""
        if seen is not None:
            await asyncio.sleep(MIN_INTERVAL_S)
            while self.view() is seen:
                if self._news.is_set():
                    # Who waits for the old one has been woken by it.
                    self._news = asyncio.Event()
                await self._news.wait()
        return self.view()
