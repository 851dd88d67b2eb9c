"""Counters that fail: the n-th operation raises, is done and then raises, or hangs. For fault sweeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation
from inferhub.stores.counters.base import Counters

Fault = Literal["before", "after", "hang", "late"]
T = TypeVar("T")


class FailingCounters:
    """Real counters behind a line that breaks at its `n`-th operation, for `times` operations.

    `before` loses the question, `after` its answer; `hang` keeps both until `mend`, `late` only the answer.
    """

    def __init__(self, inner: Counters, *, n: int = 0, fault: Fault = "before", times: int = 1) -> None:
        self.inner = inner
        self.operations = 0
        self.fault = fault
        self._first, self._last = n, n + times - 1
        self._is_broken = False
        self._mended = asyncio.Event()

    def break_down(self, fault: Fault = "before") -> None:
        """Every operation fails from now on."""
        self._is_broken, self.fault = True, fault
        self._mended.clear()

    def mend(self) -> None:
        self._is_broken, self._last = False, -1
        self._mended.set()

    async def _do(self, work: Callable[[], Awaitable[T]]) -> T:
        self.operations += 1
        if not self._is_broken and not self._first <= self.operations <= self._last:
            return await work()
        if self.fault == "hang":
            await self._mended.wait()
            return await work()
        if self.fault == "late":
            answer = await work()
            await self._mended.wait()
            return answer
        if self.fault == "after":
            await work()
        raise StoreFailed("The counters fail on purpose.")

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        return await self._do(lambda: self.inner.reserve(ticket, claims))

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        return await self._do(lambda: self.inner.settle(reservation, used))

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        await self._do(lambda: self.inner.renew(reservations))

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        await self._do(lambda: self.inner.charge(ticket, used))

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        return await self._do(lambda: self.inner.read(meters))

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        return await self._do(lambda: self.inner.mark_once(mark, ttl_s))

    async def ping(self) -> None:
        await self._do(self.inner.ping)

    async def close(self) -> None:
        self._mended.set()
        await self.inner.close()
