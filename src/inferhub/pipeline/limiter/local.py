"""What one process counts by itself while the store of all processes is gone. Used by `failsafe` alone.

Each of N gateways grants the N-th part of what was left of a limit, rounded down, so that together they never
grant more than the limit; a limit smaller than N grants nothing until the store is back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation, Unit, Window
from inferhub.stores.counters.base import LEASE_S, is_held
from inferhub.stores.counters.memory import MemoryCounters

_RETRY_S = 1.0
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Known:
    """A reading, and when it was heard on the monotonic clock."""

    reading: Reading
    heard_at: float

    def used(self, now: float) -> int:
        """What may still be used of it."""
        lasts_s = LEASE_S if self.reading.meter.window is Window.NOW else self.reading.reset_s
        return self.reading.used if now < self.heard_at + lasts_s else 0


class LocalCounters:
    """One outage: its own counters, and what of them the store has to hear later."""

    def __init__(self, name: str, gateways: int, known: Mapping[str, Known]) -> None:
        self._name = name
        self._gateways = gateways
        self._known = known
        self._memory = MemoryCounters()
        self._meters: dict[str, Meter] = {}
        """Every meter that was used, with its whole limit."""
        self._seeds: dict[str, tuple[int, float]] = {}
        """What a meter began with, and until when that counts."""
        self._charged: dict[str, int] = {}
        self.tickets: dict[str, Reservation] = {}
        """Granted here and not settled, with whole limits."""
        self._held: Counter[str] = Counter()
        self._foreign: dict[str, Reservation] = {}
        """Granted by the store, and held here too while it is gone."""

    async def hold(self, reservations: Iterable[Reservation]) -> None:
        """Calls that run already take up room; so they do here, without being asked."""
        held = [held_part(r) for r in reservations]
        for reservation in held:
            self._foreign[reservation.id] = reservation
            self._count(reservation, 1)
        for claim in [claim for reservation in held for claim in reservation.claims]:
            await self._seed(claim.meter)
        await self._memory.renew([self._scaled(r) for r in held])

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        for claim in claims:
            await self._seed(claim.meter)
        for claim in claims:
            if self._part(claim.meter).limit < claim.amount <= claim.meter.limit:
                # It fits the limit, only not this process's part: that is worth another try.
                reading = (await self.read((claim.meter,)))[0]
                return Refusal(claim, (reading,), _RETRY_S)
        answer = await self._memory.reserve(ticket, [Claim(self._part(c.meter), c.amount) for c in claims])
        readings = self._whole(answer.readings, [claim.meter for claim in claims])
        if isinstance(answer, Refusal):
            refused = next(c for c in claims if c.meter.key == answer.claim.meter.key)
            return Refusal(refused, readings, answer.retry_after_s)
        granted = Reservation(ticket, tuple(claims), readings, answer.reserved_at_s)
        self.tickets[ticket] = granted
        self._count(granted, 1)
        return granted

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        mine = self.tickets.pop(reservation.id, None)
        if mine is None:
            mine = self._foreign.pop(reservation.id, None)
            if mine is None:
                return ()
            self._not_owed(mine, used)
        self._count(mine, -1)
        readings = await self._memory.settle(self._scaled(mine), used)
        return self._whole(readings, [claim.meter for claim in mine.claims])

    async def renew(self) -> None:
        held = [*self._foreign.values(), *map(held_part, self.tickets.values())]
        await self._memory.renew([self._scaled(r) for r in held if r.claims])

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        for meter in meters:
            await self._seed(meter)
        return self._whole(await self._memory.read([self._part(meter) for meter in meters]), meters)

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        return await self._memory.mark_once(mark, ttl_s)

    async def debts(self) -> list[Claim]:
        """What was used here and the store has not been told, holds apart."""
        meters = [m for m in self._meters.values() if m.window is not Window.NOW]
        now = time.monotonic()
        found = []
        for meter, reading in zip(meters, await self._memory.read(meters), strict=True):
            seed, until = self._seeds[meter.key]
            gone = self._held[meter.key] + (seed if now < until else 0)
            owed = reading.used - gone - self._charged.get(meter.key, 0)
            if owed > 0:
                found.append(Claim(meter, owed))
        return found

    def forgive(self, debts: Iterable[Claim]) -> None:
        """The store has been told."""
        for claim in debts:
            key = claim.meter.key
            self._charged[key] = self._charged.get(key, 0) + claim.amount

    def holds(self) -> list[Reservation]:
        """What runs and was granted here, as the store shall hold it."""
        return [part for part in map(held_part, self.tickets.values()) if part.claims]

    # --- inside ---

    def _part(self, meter: Meter) -> Meter:
        return Meter(meter.key, meter.unit, meter.window, meter.limit // self._gateways, meter.mode)

    def _scaled(self, reservation: Reservation) -> Reservation:
        claims = tuple(Claim(self._part(c.meter), c.amount) for c in reservation.claims)
        return Reservation(reservation.id, claims, (), reservation.reserved_at_s)

    def _whole(self, readings: Sequence[Reading], meters: Iterable[Meter]) -> tuple[Reading, ...]:
        """Readings of parts as readings of the limit, with what is left here as what is left."""
        whole = {meter.key: meter for meter in meters}
        found = []
        for reading in readings:
            meter = whole[reading.meter.key]
            found.append(Reading(meter, meter.limit - reading.remaining, reading.reset_s))
        return tuple(found)

    def _count(self, reservation: Reservation, sign: int) -> None:
        for claim in reservation.claims:
            if is_held(claim.meter):
                self._held[claim.meter.key] += sign * claim.amount

    def _not_owed(self, foreign: Reservation, used: Mapping[str, int]) -> None:
        """What the store granted it is told as a settlement, not as a debt."""
        for claim in foreign.claims:
            seed, until = self._seeds[claim.meter.key]
            self._seeds[claim.meter.key] = (seed + used.get(claim.meter.key, claim.amount), until)

    async def _seed(self, meter: Meter) -> None:
        """Begin with so much used that this process's part of what was left is left."""
        if self._meters.get(meter.key) == meter:
            return
        is_new = meter.key not in self._meters
        self._meters[meter.key] = meter
        if not is_new:
            return
        now = time.monotonic()
        known = self._known.get(meter.key)
        left = max(0, meter.limit - (known.used(now) if known is not None else 0))
        part = self._part(meter)
        seed = max(0, part.limit - left // self._gateways - self._held[meter.key])
        lasts_s = _MINUTE_S if meter.window is Window.MINUTE else known.reading.reset_s if known else 0.0
        self._seeds[meter.key] = (seed, now + lasts_s)
        if not seed:
            return
        claim, ticket = Claim(part, seed), f"{self._name}:{meter.key}"
        if meter.unit is Unit.CONCURRENT:
            # Lapses by itself, as the holds of others in the store would.
            await self._memory.reserve(ticket, (claim,))
        else:
            await self._memory.charge(ticket, (claim,))


def held_part(reservation: Reservation) -> Reservation:
    claims = tuple(claim for claim in reservation.claims if is_held(claim.meter))
    return Reservation(reservation.id, claims, (), reservation.reserved_at_s)
