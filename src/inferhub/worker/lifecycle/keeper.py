"""Keeps the models of one worker within its memory, and lets go those that nobody calls.

The host makes it; a `managed` model asks it for room before each load. This is the one place that waits for
other models: they in turn wait for nothing but their own process to end, so no two can wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from inferhub.core.errors import Overloaded, SetupError
from inferhub.core.serving import DeviceStatus
from inferhub.telemetry.lifecycle import UnloadReason
from inferhub.worker.lifecycle.evict import (
    CPU,
    Budget,
    Bytes,
    Resident,
    evict,
    idle,
    next_idle_s,
    too_large_for,
    total,
)

_log = logging.getLogger(__name__)
_MB = 10**6


class Guest(Protocol):
    """A model as its keeper knows it."""

    @property
    def resident(self) -> Resident:
        """What it takes now, and whether it may leave."""

    async def measure(self) -> None:
        """Bring what it takes up to date. Never raises."""

    def send_away(self, reason: UnloadReason) -> None:
        """Begin to leave, if it can. Does not wait: nothing may come between the decision and this."""

    async def gone(self) -> None:
        """Return when its memory is free."""


class Keeper:
    """The memory that all engine processes of a worker may take together."""

    def __init__(
        self, budget: Budget, room_wait_s: float, devices: Callable[[], Sequence[DeviceStatus]]
    ) -> None:
        self._budget = budget
        self._room_wait_s = room_wait_s
        self._devices = devices
        self._found: Sequence[DeviceStatus] = ()
        self._guests: dict[str, Guest] = {}
        self._reserved: dict[str, Bytes] = {}
        self._has_changed = asyncio.Event()
        self._has_news = asyncio.Event()
        self._trimming: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None

    def enter(self, name: str, guest: Guest) -> None:
        self._guests[name] = guest
        self.news()

    def forget(self, name: str) -> None:
        self._guests.pop(name, None)
        self.changed()

    def changed(self) -> None:
        """A model became idle, left, or ended loading: whoever waits for room looks again."""
        self._has_changed.set()

    def news(self) -> None:
        """Another model is loaded, or is to be kept for another time: the next to be idle may be another."""
        self._has_news.set()
        if self._sweeping is None and any(g.resident.idle_ttl_s is not None for g in self._guests.values()):
            self._sweeping = asyncio.create_task(self._sweep(), name="unload idle models")

    @asynccontextmanager
    async def reserved(self, name: str, needed: Bytes) -> AsyncIterator[None]:
        """Room for one model while it loads. Waits a while for busy models where idle ones are not enough.

        Raises `SetupError` where it would not even fit beside the pinned ones, `Overloaded` where the
        others stay busy.
        """
        give_up_s = time.monotonic() + self._room_wait_s
        while not await self._make(name, needed):
            self._has_changed.clear()
            try:
                async with asyncio.timeout(give_up_s - time.monotonic()):
                    await self._has_changed.wait()
            except TimeoutError as error:
                raise self._no_room(name) from error
        try:
            yield
        finally:
            del self._reserved[name]
            self.changed()

    def trim(self) -> None:
        """Soon let idle models leave, should what was just loaded take more than was expected."""
        task = asyncio.create_task(self._trim(), name="trim models")
        self._trimming.add(task)
        task.add_done_callback(self._trimming.discard)

    async def close(self) -> None:
        tasks = [*self._trimming, *([self._sweeping] if self._sweeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, name: str, needed: Bytes) -> bool:
        await self._measure()
        # From here until everybody was sent away nothing waits: two loads cannot count on the same room.
        residents = self._residents(besides=name)
        budgets = self._budget.on(self._found, residents)
        if device := too_large_for(residents, needed, budgets):
            raise _too_large(device, needed, residents, budgets)
        leaving = evict(residents, needed, budgets)
        if leaving is None:
            return False
        self._reserved[name] = needed
        try:
            await self._away(leaving, "room")
        except BaseException:
            del self._reserved[name]
            raise
        return True

    async def _trim(self) -> None:
        await self._measure()
        residents = self._residents()
        budgets = self._budget.on(self._found, residents)
        leaving = evict(residents, {}, budgets)
        if leaving is None:
            over = {d: total(residents, d) // _MB for d in budgets if total(residents, d) > budgets[d]}
            _log.warning(
                "Models that cannot leave take more than they may: %s",
                ", ".join(f"{mb} MB of {budgets[d] // _MB} MB on {d}" for d, mb in over.items()),
            )
        else:
            await self._away(leaving, "room")

    async def _sweep(self) -> None:
        """Wake when the next one may have been idle for long enough; calls only ever put that off."""
        while True:
            self._has_news.clear()
            residents, now_s = self._residents(), time.monotonic()
            await self._away(idle(residents, now_s), "idle")
            due_s = next_idle_s([r for r in residents if r.is_loaded])
            try:
                # A busy one is overdue all the time: its end is not told, so look again in a while.
                async with asyncio.timeout(None if due_s is None else max(_LOOK_AGAIN_S, due_s - now_s)):
                    await self._has_news.wait()
            except TimeoutError:
                continue

    async def _away(self, names: Iterable[str], reason: UnloadReason) -> None:
        guests = [self._guests[name] for name in names]
        for guest in guests:
            guest.send_away(reason)
        await asyncio.gather(*(guest.gone() for guest in guests))

    async def _measure(self) -> None:
        guests = tuple(self._guests.values())
        await asyncio.gather(self._find(), *(guest.measure() for guest in guests))

    async def _find(self) -> None:
        self._found = await asyncio.to_thread(self._devices)

    def _residents(self, besides: str | None = None) -> list[Resident]:
        return [
            replace(guest.resident, memory=self._reserved[name], is_loaded=False)
            if name in self._reserved
            else guest.resident
            for name, guest in self._guests.items()
            if name != besides
        ]

    def _no_room(self, name: str) -> Overloaded:
        busy = [r.name.partition("#")[0] for r in self._residents(besides=name) if r.users]
        return Overloaded(
            f"There is no room for the model beside those that are busy ({', '.join(busy)}).",
            retry_after_s=self._room_wait_s,
            reason="out_of_memory",
        )


_LOOK_AGAIN_S = 0.5


def _too_large(device: str, needed: Bytes, residents: Sequence[Resident], budgets: Bytes) -> SetupError:
    pinned = total([r for r in residents if r.is_pinned], device)
    setting = "memory_budget_bytes" if device == CPU else "vram_share"
    return SetupError(
        f"It needs about {needed[device] // _MB} MB on {device}, where {setting} allows "
        f"{budgets[device] // _MB} MB, of which {pinned // _MB} MB are taken by pinned models. Raise the "
        "setting, or unpin those.",
        code="memory_budget",
    )
