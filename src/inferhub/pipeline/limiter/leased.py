"""Counters in front of counters: large limits are taken in blocks and spent by plain arithmetic.

Why it is still never more than L: the store grants a block like any claim, so all it counts fits L. A block
is spent only while the store will count it for at least as long as if each piece had been asked for at the
moment it was spent (`account.lasts_s`). What is unused goes back; until then it is missing from L.

A block is half of what the last second used, at most a hundredth of the limit. A call that finds too little
in its cells asks the store for the rest in one operation, as it asks for every exact meter.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence

from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation, Unit, Window
from inferhub.pipeline.limiter.account import Account, Cell
from inferhub.stores.counters.base import BLOCK, Counters, is_held

_log = logging.getLogger(__name__)

IDLE_S = 2.0
"""An unused remainder goes back after so long without a call."""
REMEMBER_REFUSAL_S = 0.25
"""So long a refused meter refuses by itself, so that a flood does not reach the store."""
_HOUSEKEEPING_S = 0.25
_MINUTE_IS_OVER_S = 62.0
_MAX_ACCOUNTS = 50_000
# Others may be quicker to take what a block brings.
_TRIES = 3

_Piece = tuple[Account, Cell, int]


class _Open:
    """What one ticket holds: pieces of cells, and a reservation of the store."""

    __slots__ = ("inner", "pieces")

    def __init__(self, pieces: list[_Piece], inner: Reservation | None) -> None:
        self.pieces = pieces
        self.inner = inner


class Leased:
    """Answers `Counters`. `run` is its housekeeping; without it nothing is lost, but nothing goes back."""

    def __init__(self, store: Counters) -> None:
        self._store = store
        self._accounts: dict[str, Account] = {}
        self._active: set[Account] = set()
        self._open: dict[str, _Open] = {}
        self._returns: deque[tuple[Reservation, dict[str, int], float]] = deque()
        self._refills: set[asyncio.Task[None]] = set()
        self._prefix = f"{BLOCK}{secrets.token_hex(8)}"
        self._blocks = 0
        self._tidying = asyncio.Lock()

    # --- without the store ---

    def reserve_now(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal | None:
        """The answer where no store is needed for it, else None."""
        now = time.monotonic()
        known = self._accounts
        accounts = []
        is_covered = True
        for claim in claims:
            meter, amount = claim.meter, claim.amount
            account = known.get(meter.key)
            if account is None or account.meter is not meter:
                account = self._account(meter)
            cell = account.cell
            if cell is None or cell.free < amount or now >= cell.ends_at:
                is_covered = False
                if now < account.refused_until or amount > meter.limit:
                    refusal = _known_refusal(account, claim, now)
                    if refusal is not None:
                        return refusal
            accounts.append((account, amount))
        if not is_covered:
            return None
        pieces = []
        readings = []
        for account, amount in accounts:
            pieces.append(self._take(account, amount, now))
            readings.append(account.reading(now))
        self._open[ticket] = _Open(pieces, None)
        return Reservation(ticket, tuple(claims), tuple(readings), time.time())

    def settle_now(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...] | None:
        """Readings of the budgets where no store is needed for it, else None."""
        opened = self._open.get(reservation.id)
        if opened is None:
            return ()
        if opened.inner is not None:
            return None
        del self._open[reservation.id]
        return self._give(opened, used)

    # --- Counters ---

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        for _ in range(_TRIES):
            answer = self.reserve_now(ticket, claims) or await self._reserve(ticket, claims)
            if isinstance(answer, Reservation):
                return answer
            account = self._account(answer.claim.meter)
            # What a block brings, or brought meanwhile, is not in the store any more, and not used either.
            if account.refill is not None:
                await asyncio.wait({account.refill})
            if not account.covers(answer.claim.amount, time.monotonic()):
                break
        return answer

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        opened = self._open.get(reservation.id)
        if opened is None:
            return ()
        readings = self._give(opened, used)
        opened.pieces = []
        if opened.inner is not None:
            readings += await self._store.settle(opened.inner, used)
            self._note_return(opened.inner)
        self._open.pop(reservation.id, None)
        return readings

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Also renews the blocks themselves."""
        opened = (self._open.get(reservation.id) for reservation in reservations)
        inner = [o.inner for o in opened if o is not None and o.inner is not None]
        for account in self._active:
            if is_held(account.meter):
                cells = [*account.closed, account.cell] if account.cell else account.closed
                inner += [block for cell in cells for block, _ in cell.blocks]
        if inner:
            await self._store.renew(inner)

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        await self._store.charge(ticket, used)

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        return await self._store.read(meters)

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        return await self._store.mark_once(mark, ttl_s)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        """Gives every block back. Calls that were not settled count with what they reserved."""
        for refill in tuple(self._refills):
            await asyncio.wait({refill})
        for account in self._active:
            account.close_cell()
            for cell in account.closed:
                cell.give(cell.held, cell.held)
        try:
            await self.tidy()
        except StoreFailed:
            _log.warning("blocks of limits could not be given back; they expire by themselves")
        await self._store.close()

    # --- housekeeping ---

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await self.tidy()
            except StoreFailed:
                # The store is watched elsewhere; what is owed to it stays in the queue.
                continue

    async def tidy(self) -> None:
        """One round: close what is over, give back what nobody uses. Raises `StoreFailed`."""
        now = time.monotonic()
        for account in tuple(self._active):
            self._collect(account, now)
            if account.cell is None and not account.closed:
                self._active.discard(account)
        if len(self._accounts) > _MAX_ACCOUNTS:
            self._forget_idle(now)
        async with self._tidying:
            while self._returns:
                block, used, worthless_at = self._returns[0]
                if time.monotonic() < worthless_at:
                    await self._store.settle(block, used)
                # Not earlier: one that failed, or was cut off, is settled again.
                self._returns.popleft()

    def _collect(self, account: Account, now: float) -> None:
        """Move what the store may have back from the cells to the queue."""
        cell = account.cell
        if cell is not None:
            is_idle = now - account.last_take > IDLE_S
            if now >= cell.ends_at or (is_idle and not cell.held):
                account.close_cell()
            else:
                self._return(account, cell.ripe(keeps_free=not is_idle), math.inf)
        kept = []
        is_minute = account.meter.window is Window.MINUTE
        for closed in account.closed:
            worthless_at = closed.ends_at + _MINUTE_IS_OVER_S if is_minute else math.inf
            self._return(account, closed.ripe(keeps_free=False), worthless_at)
            if closed.blocks and now < worthless_at:
                kept.append(closed)
        account.closed = kept

    def _return(self, account: Account, ripe: list[tuple[Reservation, int]], worthless_at: float) -> None:
        self._returns += [(block, {account.meter.key: used}, worthless_at) for block, used in ripe]

    def _forget_idle(self, now: float) -> None:
        for key, account in tuple(self._accounts.items()):
            if account not in self._active and now - account.last_take > IDLE_S and account.refill is None:
                del self._accounts[key]

    # --- inside ---

    def _account(self, meter: Meter) -> Account:
        account = self._accounts.get(meter.key)
        if account is None:
            account = self._accounts[meter.key] = Account(meter)
        elif account.meter is not meter and account.meter != meter:
            account.adopt(meter)
        return account

    def _take(self, account: Account, amount: int, now: float) -> _Piece:
        cell = account.cell
        assert cell is not None  # noqa: S101 - it covers the amount
        cell.free -= amount
        cell.held += amount
        account.taken += amount
        account.last_take = now
        if cell.free < account.low_water:
            size = account.next_block(amount, now)
            if size:
                self._fetch(account, size)
        return account, cell, amount

    def _give(self, opened: _Open, used: Mapping[str, int]) -> tuple[Reading, ...]:
        readings: tuple[Reading, ...] = ()
        now = time.monotonic()
        for account, cell, amount in opened.pieces:
            meter = account.meter
            if meter.unit is Unit.CONCURRENT:
                cell.give(amount, 0)
                account.refused_until = 0.0
            else:
                cell.give(amount, used.get(meter.key, amount))
                if meter.unit is Unit.USD:
                    readings += (account.reading(now),)
        return readings

    async def _reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        """Take what the cells cover, and ask the store for the rest."""
        now = time.monotonic()
        pieces: list[_Piece] = []
        direct: list[Claim] = []
        for claim in claims:
            account = self._account(claim.meter)
            if account.covers(claim.amount, now):
                pieces.append(self._take(account, claim.amount, now))
                continue
            direct.append(claim)
            if account.is_leased:
                account.taken += claim.amount
                account.last_take = now
                size = account.next_block(claim.amount, now)
                if size:
                    self._fetch(account, size)
        opened = _Open(pieces, None)
        try:
            answer = await self._store.reserve(ticket, direct)
        except BaseException:
            _put_back(pieces)
            raise
        if isinstance(answer, Refusal):
            _put_back(pieces)
            self._note_refusal(answer)
            return answer
        opened.inner = answer
        self._open[ticket] = opened
        return Reservation(ticket, tuple(claims), self._readings(claims, answer), answer.reserved_at_s)

    def _readings(self, claims: Sequence[Claim], inner: Reservation) -> tuple[Reading, ...]:
        now = time.monotonic()
        told = {reading.meter.key: reading for reading in inner.readings}
        found = []
        for claim in claims:
            account = self._account(claim.meter)
            reading = told.get(claim.meter.key)
            if reading is not None:
                account.learn(reading, now)
            found.append(account.reading(now))
        return tuple(found)

    def _note_refusal(self, refusal: Refusal) -> None:
        if refusal.retry_after_s is None:
            return
        now = time.monotonic()
        account = self._account(refusal.claim.meter)
        for reading in refusal.readings:
            if reading.meter.key == account.meter.key:
                account.learn(reading, now)
        account.refusal = refusal
        account.retry_at = now + refusal.retry_after_s
        account.refused_until = now + min(refusal.retry_after_s, REMEMBER_REFUSAL_S)

    def _note_return(self, inner: Reservation) -> None:
        for claim in inner.claims:
            account = self._accounts.get(claim.meter.key)
            if account is not None and claim.meter.unit is Unit.CONCURRENT:
                account.refused_until = 0.0

    def _fetch(self, account: Account, size: int) -> None:
        task = account.refill = asyncio.create_task(self._refill(account, size))
        self._refills.add(task)
        task.add_done_callback(self._refills.discard)

    async def _refill(self, account: Account, size: int) -> None:
        self._blocks += 1
        sent_at = time.monotonic()
        claim = Claim(account.meter, size)
        try:
            answer = await self._store.reserve(f"{self._prefix}-{self._blocks}", (claim,))
        except StoreFailed:
            account.no_block_until = sent_at + REMEMBER_REFUSAL_S
            return
        finally:
            account.refill = None
        if isinstance(answer, Refusal):
            account.no_block_until = sent_at + REMEMBER_REFUSAL_S
            return
        account.add(answer, size, sent_at)
        self._active.add(account)


def _put_back(pieces: list[_Piece]) -> None:
    for _, cell, amount in pieces:
        cell.give(amount, 0)


def _known_refusal(account: Account, claim: Claim, now: float) -> Refusal | None:
    """What the store would say, or said a moment ago of a claim that was not larger."""
    readings = (account.reading(now),)
    if claim.amount > claim.meter.limit:
        return Refusal(claim, readings, None)
    if account.refusal is None or claim.amount < account.refusal.claim.amount:
        return None
    return Refusal(claim, readings, max(0.001, account.retry_at - now))
