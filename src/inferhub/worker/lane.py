"""The bounded way into one model: a few calls run, some wait in order, the rest are refused.

`loaded` enters it for every call. It knows neither calls nor time limits: a waiting call is taken out by
cancelling its task.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferhub.core.errors import Overloaded

# How much the newest call counts in the average that `retry_after_s` is guessed from.
_WEIGHT = 0.2
_RETRY_AFTER_S = (1.0, 60.0)


class Lane:
    """First in, first out. Made for one event loop."""

    def __init__(self, slots: int, queue_limit: int) -> None:
        self.running = 0
        self._slots = slots
        self._queue_limit = queue_limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._call_s = 0.0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot. Raises `Overloaded` when the queue is full."""
        await self._enter()
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._call_s += _WEIGHT * (time.monotonic() - started_s - self._call_s)
            self._leave()

    async def _enter(self) -> None:
        if self.running < self._slots:
            self.running += 1
            return
        if len(self._waiting) >= self._queue_limit:
            raise Overloaded(
                f"All {self._slots} slots are busy and {self.queued} calls wait already.",
                retry_after_s=self._guess_wait_s(),
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove(turn)
            else:
                # The slot was handed over in the very moment the call was cancelled: pass it on.
                self._leave()
            raise

    def _leave(self) -> None:
        # A cancelled waiter stays in the queue until its task runs; it must not swallow the slot.
        for turn in self._waiting:
            if not turn.done():
                self._waiting.remove(turn)
                turn.set_result(None)
                return
        self.running -= 1

    def _guess_wait_s(self) -> float:
        shortest_s, longest_s = _RETRY_AFTER_S
        return min(longest_s, max(shortest_s, self._call_s * (self.queued + 1) / self._slots))
