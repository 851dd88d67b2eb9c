"""Ends calls that take too long: in total, before the first content, or between two pieces.

One timer a call. Time spent waiting for a slow client is the client's, not the upstream's. Sits inside the
meter, which so learns why a call ended; admission and the ledger, outside, bound their own waits.
"""

from __future__ import annotations

import asyncio
import time

from inferhub.core.call import Call, Chunk, Delta, Emit, Handler
from inferhub.core.errors import DeadlineExceeded


class Deadline:
    """A ring. Only content resets the idle limit; a backend's keep-alives never reach it."""

    def __init__(self, *, first_token_timeout_s: float, idle_timeout_s: float) -> None:
        self._first_token_timeout_s = first_token_timeout_s
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        limit, patience_s = "first_token_timeout_s", self._first_token_timeout_s
        try:
            async with asyncio.timeout(None) as scope:
                watchdog = _Watchdog(scope, call.deadline_s, patience_s)

                async def watch(chunk: Chunk) -> None:
                    nonlocal limit, patience_s
                    watchdog.rest()
                    await emit(chunk)
                    if isinstance(chunk, Delta):
                        limit, patience_s = "idle_timeout_s", self._idle_timeout_s
                    watchdog.expect_within(patience_s)

                try:
                    await inner(call, watch)
                finally:
                    watchdog.stop()
        except TimeoutError as error:
            if not scope.expired():
                raise
            if time.monotonic() >= call.deadline_s:
                limit = "request_timeout_s"
            raise DeadlineExceeded(f"The call took too long: {_MEANING[limit]} ({limit}).") from error


class _Watchdog:
    """Expires an `asyncio.timeout` scope when nothing happened for too long.

    Moving the scope's own deadline with every token would cancel and make a timer each time. Here a
    token only stores a number; the timer looks at it when it fires, and goes back to sleep.
    """

    def __init__(self, scope: asyncio.Timeout, total_s: float, patience_s: float) -> None:
        self._scope = scope
        self._loop = asyncio.get_running_loop()
        # The scope counts on the loop's clock, the call on time.monotonic().
        self._end = self._loop.time() + total_s - time.monotonic()
        self._due = min(self._end, self._loop.time() + patience_s)
        self._timer = self._loop.call_at(self._due, self._look)

    def expect_within(self, patience_s: float) -> None:
        self._due = min(self._end, self._loop.time() + patience_s)
        if self._due < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._look)

    def rest(self) -> None:
        """Only the end of the whole call counts now."""
        self._due = self._end

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._loop.time() >= self._due:
            self._scope.reschedule(self._due)
        else:
            self._timer = self._loop.call_at(self._due, self._look)


_MEANING = {
    "first_token_timeout_s": "no content arrived in time",
    "idle_timeout_s": "the answer stopped arriving",
    "request_timeout_s": "the limit for the whole call is over",
}
