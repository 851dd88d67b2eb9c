"""Reserves what a call may use and settles what it used. Asked by the rings `admit` and `meter`.

Whatever happens to the caller, a reservation is settled: the work runs in tasks of this room, and is tried
again while the store fails. Knows no modality and no price.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Protocol, TypeVar, cast

from inferhub.core.errors import Overloaded, StoreFailed
from inferhub.core.quota import Claim, Reading, Refusal, Reservation, Unit
from inferhub.core.tenancy import Principal
from inferhub.core.usage import Usage
from inferhub.pipeline.limiter.amounts import Plan, amounts
from inferhub.pipeline.limiter.book import QuotaBook, meter_of
from inferhub.pipeline.limiter.refusals import refused
from inferhub.stores.counters.base import LEASE_S, Counters, is_held

_log = logging.getLogger(__name__)

MAX_UNSETTLED = 65_536
"""Settlements that wait for the store; beyond it no new call is let in."""
CLOSE_WITHIN_S = 5.0
_STORE_TIMEOUT_S = 5.0
_PATIENCE_S = 0.25
_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0
_RENEW_AT_ONCE = 1000

T = TypeVar("T")


class Instant(Protocol):
    """What counters may offer besides: answers that need no store, without a task for them."""

    def reserve_now(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal | None: ...

    def settle_now(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...] | None: ...


class Limiter:
    """`book` returns the current snapshot. `run` renews what long calls hold; `close` settles the rest."""

    def __init__(self, counters: Counters, book: Callable[[], QuotaBook]) -> None:
        self._counters = counters
        self._instant = cast("Instant", counters) if hasattr(counters, "reserve_now") else None
        self._book = book
        self._prefix = f"tkt_{secrets.token_hex(8)}"
        self._numbers = count(1)
        self._open: dict[str, tuple[Reservation, Plan]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closing = False

    @property
    def unsettled(self) -> int:
        """Work for the store that is under way or waits for it."""
        return len(self._tasks)

    @property
    def open(self) -> int:
        """Reservations that are not settled."""
        return len(self._open)

    def binds(self, principal: Principal) -> bool:
        """Whether this caller has any limit at all."""
        return bool(self._book().meters_for(principal))

    async def reserve(
        self, principal: Principal, estimate: Usage, cost_nano_usd: int, modality: str
    ) -> Reservation | None:
        """None for a caller without limits. Raises `RateLimited`, `QuotaExceeded` or `StoreFailed`."""
        plan = self._book().plan_for(principal)
        return await self._hold(plan, plan.claims(amounts(estimate, cost_nano_usd)))

    async def reserve_more(
        self, principal: Principal, estimate: Usage, cost_nano_usd: int
    ) -> Reservation | None:
        """For a call that has its reservation, and turns out to be longer: it is no further request."""
        plan = self._book().plan_for(principal)
        claims = plan.claims(amounts(estimate, cost_nano_usd))
        longer = [c for c in claims if c.amount and c.meter.unit not in (Unit.REQUESTS, Unit.CONCURRENT)]
        return await self._hold(plan, tuple(longer))

    async def _hold(self, plan: Plan, claims: tuple[Claim, ...]) -> Reservation | None:
        if not claims:
            return None
        if len(self._tasks) >= MAX_UNSETTLED:
            raise Overloaded(
                "Too many settled calls wait for the counters of limits.",
                retry_after_s=1.0,
                reason="gateway_full",
            )
        ticket = f"{self._prefix}-{next(self._numbers)}"
        answer = self._instant.reserve_now(ticket, claims) if self._instant is not None else None
        if answer is None:
            answer = await self._ask(ticket, claims)
        if isinstance(answer, Refusal):
            raise refused(answer)
        self._open[ticket] = (answer, plan)
        return answer

    async def settle(self, reservation: Reservation, usage: Usage, cost_nano_usd: int) -> tuple[Reading, ...]:
        """Replace the estimate by what was used; only the first time counts.

        Returns how full the budgets are, where the store said so in time. A cancelled caller, and one that
        does not wait for a slow store, lose nothing: the work goes on without them.
        """
        opened = self._open.pop(reservation.id, None)
        if opened is None:
            return ()
        used = opened[1].used(amounts(usage, cost_nano_usd))
        if self._instant is not None:
            readings = self._instant.settle_now(reservation, used)
            if readings is not None:
                return readings
        task = self._own(self._settle(reservation, used))
        await asyncio.wait({task}, timeout=_PATIENCE_S)
        if not task.done() or task.cancelled():
            return ()
        return tuple(reading for reading in task.result() if reading.meter.unit is Unit.USD)

    async def charge(self, ticket: str, keys: Sequence[str], cost_nano_usd: int) -> None:
        """Count the cost of a call that a crash cut off, once per ticket. Raises `StoreFailed`.

        `keys` are those of its meters; only budgets are charged, other units kept what was reserved.
        """
        meters = [meter for meter in map(meter_of, keys) if meter.unit is Unit.USD]
        if meters and cost_nano_usd > 0:
            await self._counters.charge(ticket, [Claim(meter, cost_nano_usd) for meter in meters])

    async def run(self) -> None:
        """Renew what running calls hold, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await self.renew()

    async def renew(self) -> None:
        """One round. A failure is made good by the next one: a lease outlives two of them."""
        held = [r for r, _ in self._open.values() if any(is_held(claim.meter) for claim in r.claims)]
        try:
            # Also without any: counters renew what they hold themselves.
            for first in range(0, max(1, len(held)), _RENEW_AT_ONCE):
                async with asyncio.timeout(_STORE_TIMEOUT_S):
                    await self._counters.renew(held[first : first + _RENEW_AT_ONCE])
        except (StoreFailed, TimeoutError) as error:
            _log.warning("limits could not be renewed: %s", type(error).__name__)

    async def close(self) -> None:
        """Settle everything, in a bounded time. Calls that still run count with what they reserved."""
        self._is_closing = True
        for reservation, _ in tuple(self._open.values()):
            self._own(self._settle(reservation, {}))
        self._open.clear()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_WITHIN_S)
        lost = tuple(self._tasks)
        if lost:
            _log.error("%d settlements of limits did not reach their store", len(lost))
        for task in lost:
            task.cancel()
        await asyncio.gather(*lost, return_exceptions=True)

    # --- tasks that outlive their callers ---

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        task = self._own(self._reserve(ticket, claims))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The store may be granting it at this moment.
            self._own(self._abandon(task, ticket, claims))
            raise
        except StoreFailed:
            # Perhaps only its answer was lost.
            self._own(self._undo(ticket, claims))
            raise

    async def _reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                return await self._counters.reserve(ticket, claims)
        except TimeoutError as error:
            raise StoreFailed("The counters of limits do not answer.") from error

    async def _abandon(
        self, asking: asyncio.Task[Reservation | Refusal], ticket: str, claims: Sequence[Claim]
    ) -> None:
        try:
            answer = await asking
        except StoreFailed:
            await self._undo(ticket, claims)
        else:
            if isinstance(answer, Reservation):
                await self._settle(answer, _nothing(claims))

    async def _undo(self, ticket: str, claims: Sequence[Claim]) -> None:
        """Asking again with the same ticket says whether it was granted, or grants it now; then it goes back.

        What a store holds for a call expires by itself, so this need not be tried for longer than that.
        """
        give_up_at = asyncio.get_running_loop().time() + LEASE_S
        for pause_s in _backoff():
            await asyncio.sleep(pause_s)
            try:
                answer = await self._reserve(ticket, claims)
            except StoreFailed:
                if self._is_closing or asyncio.get_running_loop().time() > give_up_at:
                    return
                continue
            if isinstance(answer, Reservation):
                await self._settle(answer, _nothing(claims))
            return

    async def _settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        """Until the store has it; `close` ends it otherwise."""
        for pause_s in _backoff():
            try:
                async with asyncio.timeout(_STORE_TIMEOUT_S):
                    return await self._counters.settle(reservation, used)
            except (StoreFailed, TimeoutError):
                await asyncio.sleep(pause_s)
        raise AssertionError  # `_backoff` has no end


def _nothing(claims: Sequence[Claim]) -> dict[str, int]:
    return {claim.meter.key: 0 for claim in claims}


def _backoff() -> Iterator[float]:
    pause_s = _BACKOFF_S
    while True:
        yield pause_s
        pause_s = min(_MAX_BACKOFF_S, pause_s * 2)
