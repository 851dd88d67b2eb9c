"""Keeps the models of one worker within its memory: measures them, and lets idle ones leave for others.

The host makes it, `demand` asks it before each load. `eviction` decides; nothing is loaded here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from inferhub.core.errors import SetupError
from inferhub.worker.engine import Engine
from inferhub.worker.eviction import Resident, leavers

_log = logging.getLogger(__name__)
_MB = 10**6


class Guest(Engine, Protocol):
    """An engine that may leave memory and come back."""

    @property
    def last_used_s(self) -> float: ...

    @property
    def can_leave(self) -> bool:
        """True when it is loaded and no call needs it."""

    async def leave(self) -> None:
        """Return when its memory is free. Does nothing where it cannot leave."""


class Room:
    """The memory that all engine processes of a worker may take together."""

    def __init__(self, budget_bytes: int, pinned: Callable[[], Iterable[Engine]]) -> None:
        self._budget_bytes = budget_bytes
        self._pinned = pinned
        self._guests: dict[str, Guest] = {}
        self._reserved: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._trimming: set[asyncio.Task[None]] = set()

    def enter(self, name: str, guest: Guest) -> None:
        self._guests[name] = guest

    def forget(self, name: str) -> None:
        self._guests.pop(name, None)
        self.changed()

    def changed(self) -> None:
        """A model became idle, left, or ended loading: whoever waits looks again."""
        self._changed.set()

    @asynccontextmanager
    async def reserved(self, name: str, needed_bytes: int) -> AsyncIterator[None]:
        """Room for one model while it loads. Waits for busy models where idle ones are not enough.

        Raises `SetupError` where it would not even fit beside the models that never leave.
        """
        while not await self._make(name, needed_bytes):
            self._changed.clear()
            await self._changed.wait()
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
        for task in self._trimming:
            task.cancel()
        await asyncio.gather(*self._trimming, return_exceptions=True)

    async def _make(self, name: str, needed_bytes: int) -> bool:
        await self._measure()
        # From here to the reservation nothing awaits: two loads cannot count on the same room.
        pinned = self._pinned_bytes()
        if pinned + needed_bytes > self._budget_bytes:
            raise SetupError(
                f"It needs about {needed_bytes // _MB} MB of memory_budget_bytes = "
                f"{self._budget_bytes // _MB} MB, of which {pinned // _MB} MB are taken by models that never "
                "leave. Raise the setting, or load those on demand.",
                code="memory_budget",
            )
        leaving = leavers(self._residents(), pinned + needed_bytes, self._budget_bytes)
        if leaving is None:
            return False
        self._reserved[name] = needed_bytes
        try:
            await self._evict(leaving)
        except BaseException:
            del self._reserved[name]
            raise
        return True

    async def _trim(self) -> None:
        await self._measure()
        residents, pinned = self._residents(), self._pinned_bytes()
        leaving = leavers(residents, pinned, self._budget_bytes)
        if leaving is None:
            _log.warning(
                "Models take %d MB, more than memory_budget_bytes = %d MB",
                (pinned + sum(r.memory_bytes for r in residents)) // _MB,
                self._budget_bytes // _MB,
            )
        else:
            await self._evict(leaving)

    async def _evict(self, names: Iterable[str]) -> None:
        await asyncio.gather(*(self._guests[name].leave() for name in names))

    async def _measure(self) -> None:
        engines = (*self._pinned(), *self._guests.values())
        await asyncio.gather(*(engine.measure() for engine in engines))

    def _pinned_bytes(self) -> int:
        return sum(engine.memory_bytes for engine in self._pinned())

    def _residents(self) -> list[Resident]:
        loading = [Resident(name, size, 0.0, can_leave=False) for name, size in self._reserved.items()]
        return loading + [
            Resident(name, guest.memory_bytes, guest.last_used_s, guest.can_leave)
            for name, guest in self._guests.items()
            if name not in self._reserved
        ]
