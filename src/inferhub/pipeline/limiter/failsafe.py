"""Counters in front of a store that may die: waits for it a bounded time, then counts in this process.

Comes back by itself, and tells the store what was used meanwhile. Never lets a failed store fail a call.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation
from inferhub.pipeline.limiter.local import Known, LocalCounters, held_part
from inferhub.stores.counters.base import Counters, is_held

_log = logging.getLogger(__name__)

PROBE_S = 0.5
MAX_OWED = 100_000
"""Settlements that wait for the store; beyond it the oldest is left to what it had reserved."""
_MAX_KNOWN = 100_000
_AT_ONCE = 64
_CATCH_UP_S = 2.0

State = Literal["ok", "local"]
T = TypeVar("T")


class Failsafe:
    """Answers `Counters` and raises `StoreFailed` only from `ping` and `charge`."""

    def __init__(
        self,
        store: Counters,
        *,
        gateways_expected: int = 1,
        timeout_s: float = 0.05,
        on_change: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._gateways = gateways_expected
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._known: dict[str, Known] = {}
        self._held: dict[str, Reservation] = {}
        """Granted by the store and not settled, where it holds something for them."""
        self._local: LocalCounters | None = None
        self._granted_by: dict[str, LocalCounters] = {}
        self._owed: dict[str, tuple[Reservation, Mapping[str, int]]] = {}
        self._probing: asyncio.Task[None] | None = None

    def state(self) -> State:
        return "ok" if self._local is None else "local"

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        if self._local is None:
            answer = await self._try(self._store.reserve(ticket, claims))
            if answer is not None:
                self._learn(answer.readings)
                if isinstance(answer, Reservation) and any(is_held(claim.meter) for claim in claims):
                    self._held[ticket] = answer
                return answer
        local = await self._counting_here()
        granted = await local.reserve(ticket, claims)
        if isinstance(granted, Reservation):
            self._granted_by[ticket] = local
        return granted

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        local = self._granted_by.pop(reservation.id, None)
        if local is not None:
            return await self._settle_local(local, reservation, used)
        self._held.pop(reservation.id, None)
        if self._local is None:
            readings = await self._try(self._store.settle(reservation, used))
            if readings is not None:
                self._learn(readings)
                return readings
        return await self._owe(reservation, used)

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        if self._local is not None:
            await self._local.renew()
            return
        # One that was granted here is held by the store under its ticket since that came back.
        held = [r for r in map(held_part, reservations) if r.claims]
        if held:
            await self._try(self._store.renew(held))

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        """Raises `StoreFailed`: the caller knows what it owes, and has time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._store.charge(ticket, used)
        except TimeoutError as error:
            raise StoreFailed("The counters of limits do not answer.") from error

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        if self._local is None:
            readings = await self._try(self._store.read(meters))
            if readings is not None:
                return readings
        return await (await self._counting_here()).read(meters)

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        """While the store is gone, once for each process."""
        if self._local is None:
            is_first = await self._try(self._store.mark_once(mark, ttl_s))
            if is_first is not None:
                return is_first
        return await (await self._counting_here()).mark_once(mark, ttl_s)

    async def ping(self) -> None:
        """The store's own answer, whatever this process does without it."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._store.ping()
        except TimeoutError as error:
            raise StoreFailed("The counters of limits do not answer.") from error

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._store.close()

    # --- losing the store ---

    async def _try(self, asking: Awaitable[T]) -> T | None:
        """The store's answer in time. None, and the other mode, where there is none."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asking
        except (StoreFailed, TimeoutError) as error:
            await self._lose(error)
            return None

    async def _lose(self, error: Exception) -> None:
        if self._local is not None:
            return
        local = LocalCounters(f"lost_{secrets.token_hex(8)}", self._gateways, self._known)
        self._local = local
        await local.hold(self._held.values())
        _log.warning(
            "the counters of limits do not answer (%s); counting in this process", type(error).__name__
        )
        self._probing = asyncio.create_task(self._probe())
        self._on_change("local")

    async def _counting_here(self) -> LocalCounters:
        # The store may have come back between the failed question and this one.
        if self._local is None:
            await self._lose(StoreFailed())
        assert self._local is not None  # noqa: S101 - just set
        return self._local

    async def _settle_local(
        self, local: LocalCounters, reservation: Reservation, used: Mapping[str, int]
    ) -> tuple[Reading, ...]:
        readings = await local.settle(reservation, used)
        if local is self._local:
            return readings
        # The store came back while the call ran. It holds the money and the slot under this ticket, and was
        # told the other estimates; what went beyond those is told now.
        beyond = [
            Claim(claim.meter, used.get(claim.meter.key, 0) - claim.amount)
            for claim in reservation.claims
            if not is_held(claim.meter) and used.get(claim.meter.key, 0) > claim.amount
        ]
        if beyond:
            await self._try(self._store.charge(f"{reservation.id}:beyond", beyond))
        held = held_part(reservation)
        if not held.claims:
            return readings
        told = await self._try(self._store.settle(held, used)) if self._local is None else None
        return await self._owe(held, used) if told is None else told

    async def _owe(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        if len(self._owed) >= MAX_OWED:
            del self._owed[next(iter(self._owed))]
        self._owed[reservation.id] = (reservation, used)
        return await self._local.settle(reservation, used) if self._local is not None else ()

    # --- finding it again ---

    async def _probe(self) -> None:
        while self._local is not None:
            # Not all gateways at once.
            await asyncio.sleep(PROBE_S * (0.5 + random.random()))  # noqa: S311 - jitter, not a secret
            try:
                await self.ping()
                async with asyncio.timeout(_CATCH_UP_S):
                    await self._catch_up(self._local)
            except (StoreFailed, TimeoutError):
                continue
            except Exception:
                _log.exception("returning to the counters of limits failed")

    async def _catch_up(self, local: LocalCounters) -> None:
        """Tell the store what happened without it, then let it decide again."""
        while self._owed:
            batch = list(self._owed.values())[:_AT_ONCE]
            await asyncio.gather(*[self._store.settle(reservation, used) for reservation, used in batch])
            for reservation, _ in batch:
                self._owed.pop(reservation.id, None)
        await self._tell(local)
        self._local = None
        _log.warning("the counters of limits answer again")
        self._on_change("ok")
        # What was granted here during the last question.
        await self._tell(local)

    async def _tell(self, local: LocalCounters) -> None:
        holds, debts = local.holds(), await local.debts()
        if holds:
            await self._store.renew(holds)
        if debts:
            await self._store.charge(f"debt_{secrets.token_hex(8)}", debts)
            # Not earlier: a debt that may not have arrived is told again, on the safe side.
            local.forgive(debts)

    def _learn(self, readings: Sequence[Reading]) -> None:
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        now = time.monotonic()
        for reading in readings:
            self._known[reading.meter.key] = Known(reading, now)
