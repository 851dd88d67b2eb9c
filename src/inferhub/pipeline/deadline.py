"""Ends calls that take too long in total, wherever they are: in the cache, between attempts, at an endpoint.

Shortens the time of a route's call where the route says so. Sits inside the meter, which so learns why a
call ended; admission and the ledger, outside, bound their own waits. How long one endpoint may be silent is
the attempt's business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from inferhub.core.call import Call, Emit, Handler
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.patience import Alarm

# An attempt watches the same limit and knows where the time went. It is to be the first to say so, and to
# have the time that its endpoint needs to stop.
_SLACK_S = 0.5


class Deadline:
    """A ring."""

    def __init__(self, directory: Callable[[], Directory] | None = None) -> None:
        self._directory = directory

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        now_s = time.monotonic()
        call = self._shortened(call, now_s)
        loop = asyncio.get_running_loop()
        with Alarm(loop.time() + call.deadline_s - now_s + _SLACK_S, loop):
            await inner(call, emit)

    def _shortened(self, call: Call, now_s: float) -> Call:
        route = self._directory().routes.get(call.model) if self._directory else None
        limit_s = route.patience.request_timeout_s if route else None
        if limit_s is None or now_s + limit_s >= call.deadline_s or call.incoming is not None:
            # A session lasts as long as its client talks, which is no wait for an answer.
            return call
        return replace(call, deadline_s=now_s + limit_s)
