"""Tries again where that is safe: nothing has been emitted and the error says it may pass.

The only place that retries. Never waits for a busy endpoint: capacity is the client's to wait for.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace

from inferhub.core.call import Call, Chunk, Emit, Handler
from inferhub.core.errors import Draining, EndpointLost, ServingError, UpstreamFailed

_BACKOFF_S = 0.05
# A refusal for lack of capacity is not among them: knocking again at once makes it worse.
_WORTH_ANOTHER_TRY = (EndpointLost, UpstreamFailed, Draining)


class Attempt:
    """A ring. At most `max_attempts` dispatches a call, the first included."""

    def __init__(self, *, max_attempts: int) -> None:
        self._max_attempts = max_attempts

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        has_emitted = False

        async def watch(chunk: Chunk) -> None:
            nonlocal has_emitted
            has_emitted = True
            await emit(chunk)

        while True:
            try:
                return await inner(call, watch)
            except ServingError as error:
                error.attempts = call.attempt
                if has_emitted or not error.retryable or call.attempt >= self._max_attempts:
                    raise
                if not isinstance(error, _WORTH_ANOTHER_TRY):
                    raise
                failed = error
            pause_s = _BACKOFF_S * (0.5 + random.random())  # noqa: S311 - jitter, not a secret
            if time.monotonic() + pause_s >= call.deadline_s:
                raise failed
            await asyncio.sleep(pause_s)
            tried = call.avoid | ({failed.endpoint} if failed.endpoint else set())
            call = replace(call, attempt=call.attempt + 1, avoid=tried)
