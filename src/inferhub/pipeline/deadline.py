"""Ends calls that take too long: in total, before the first content, or between two pieces.

One timer a call. Time spent waiting for a slow client is the client's, not the upstream's.
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
        # asyncio.timeout counts on the loop's clock, the call on time.monotonic().
        total = asyncio.get_running_loop().time() + call.deadline_s - time.monotonic()
        limit, patience_s = "first_token_timeout_s", self._first_token_timeout_s
        try:
            async with asyncio.timeout(None) as timer:

                def wait_at_most(seconds_s: float) -> None:
                    timer.reschedule(min(total, asyncio.get_running_loop().time() + seconds_s))

                async def watch(chunk: Chunk) -> None:
                    nonlocal limit, patience_s
                    timer.reschedule(total)
                    await emit(chunk)
                    if isinstance(chunk, Delta):
                        limit, patience_s = "idle_timeout_s", self._idle_timeout_s
                    wait_at_most(patience_s)

                wait_at_most(patience_s)
                await inner(call, watch)
        except TimeoutError as error:
            if not timer.expired():
                raise
            if time.monotonic() >= call.deadline_s:
                limit = "request_timeout_s"
            raise DeadlineExceeded(f"The call took too long: {_MEANING[limit]} ({limit}).") from error


_MEANING = {
    "first_token_timeout_s": "no content arrived in time",
    "idle_timeout_s": "the answer stopped arriving",
    "request_timeout_s": "the limit for the whole call is over",
}
