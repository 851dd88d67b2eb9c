"""Lets a call in while this process has room. Quotas and scopes join it in later work."""

from __future__ import annotations

from inferhub.core.call import Call, Emit, Handler
from inferhub.core.errors import Overloaded


class Admit:
    """A ring. Bounds the calls in flight, so that memory is bounded whatever arrives."""

    def __init__(self, *, max_inflight: int) -> None:
        self._max_inflight = max_inflight
        self._inflight = 0

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        if self._inflight >= self._max_inflight:
            raise Overloaded(f"{self._inflight} calls are in flight, the most allowed.", retry_after_s=1.0)
        self._inflight += 1
        try:
            await inner(call, emit)
        finally:
            self._inflight -= 1
