"""One computation for identical calls of one process: the first leads, the others wait for what it gets.

A leader that fails, is cancelled, or takes too long is replaced by exactly one of those who wait.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Flight(Generic[T]):
    """What a leader holds; leaving its `with` block without `land` lets another one lead."""

    def __init__(self, flights: Flights[T], key: bytes) -> None:
        self._flights = flights
        self._key = key
        self._result: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._begun_s = time.monotonic()

    def land(self, result: T) -> None:
        """Give it to all who wait, also those behind a later leader: it is what that one computes."""
        self._end(result)
        later = self._flights.running.get(self._key)
        if later is not None and not later._result.done():
            later._result.set_result(result)

    def patience_left_s(self, patience_s: float) -> float:
        return self._begun_s + patience_s - time.monotonic()

    async def result(self, timeout_s: float) -> T | None:
        """None where it failed, or the time is over. Being cancelled here does nothing to the leader."""
        await asyncio.wait([self._result], timeout=timeout_s)
        return self._result.result() if self._result.done() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(None)

    def _end(self, result: T | None) -> None:
        if self._flights.running.get(self._key) is self:
            del self._flights.running[self._key]
        if not self._result.done():
            self._result.set_result(result)


class Flights(Generic[T]):
    """All that is being computed now, by key. Bounded by the calls in flight."""

    def __init__(self, patience_s: float) -> None:
        """After `patience_s` a leader attracts and keeps nobody: its client may read slowly."""
        self._patience_s = patience_s
        self.running: dict[bytes, Flight[T]] = {}

    async def board(self, key: bytes) -> Flight[T] | T:
        """The result of the one who leads, or a flight to lead."""
        while True:
            flight = self.running.get(key)
            left_s = flight.patience_left_s(self._patience_s) if flight is not None else 0.0
            if flight is None or left_s <= 0:
                # Nothing awaited since the look: whoever wakes next meets this one.
                mine = self.running[key] = Flight(self, key)
                return mine
            result = await flight.result(left_s)
            if result is not None:
                return result
