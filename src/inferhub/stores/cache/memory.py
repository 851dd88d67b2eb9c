"""Answers in this process: bounded by bytes, the least recently used leave first, each ends with its time.

The whole store where the URL is `memory://`, and the tier in front of every other one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from inferhub.core.errors import StoreFailed
from inferhub.stores.cache.base import MAX_VALUE_BYTES

ENTRY_BYTES = 300
"""What an entry takes besides its value: key, tuple, numbers and its place in the order."""


class _Entry(NamedTuple):
    value: bytes
    due_s: float


class MemoryAnswers:
    """Answers `SharedAnswers`. `find`, `keep` and `drop` are the same without awaiting, for the tier."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.size_bytes = 0

    def find(self, key: bytes) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.due_s <= self._clock():
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return entry.value

    def keep(self, key: bytes, value: bytes, ttl_s: float) -> None:
        self.drop(key)
        size = len(value) + ENTRY_BYTES
        if len(value) > MAX_VALUE_BYTES or size > self._max_bytes or ttl_s <= 0:
            return
        self._entries[key] = _Entry(value, self._clock() + ttl_s)
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= len(entry.value) + ENTRY_BYTES

    async def get(self, key: bytes) -> bytes | None:
        return self.find(key)

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        self.keep(key, value, ttl_s)

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        found = self.find(key)
        if found is None:
            self.keep(key, value, ttl_s)
            if key not in self._entries:
                # Whoever wins relies on it being there.
                raise StoreFailed(f"{len(value)} bytes do not fit into the answers of this process.")
        return found

    async def delete(self, key: bytes) -> None:
        self.drop(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.find(key) for key in keys]

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        for key, value in entries:
            self.keep(key, value, ttl_s)

    async def discard(self, key: bytes, value: bytes) -> None:
        if self.find(key) == value:
            self.drop(key)

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        self._entries.clear()
        self.size_bytes = 0
