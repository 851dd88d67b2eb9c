"""The answers of a gateway process: its own memory in front, the sealed shared store behind.

The cache ring asks `find` and `keep`, which never fail and never wait long; idempotency asks the methods of
`AnswerStore`, which ask the shared store every time and say when it does not answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from inferhub.core.errors import StoreFailed
from inferhub.stores.cache.base import MAX_VALUE_BYTES, SharedAnswers
from inferhub.stores.cache.memory import MemoryAnswers

_log = logging.getLogger(__name__)

State = Literal["ok", "memory"]
T = TypeVar("T")

PROBE_S = 1.0
_PROBE_TTL_S = 10.0
_DUE = struct.Struct("<q")
"""In front of a shared value: when it ends, in Unix milliseconds, so that the tier ends it then too."""


class TieredAnswers:
    """Answers `AnswerStore`. `shared` None means that there is nothing behind the memory."""

    def __init__(
        self,
        memory: MemoryAnswers,
        shared: SharedAnswers | None,
        *,
        timeout_s: float = 0.05,
        on_change: Callable[[State], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`timeout_s` is the most that `find` and `keep` wait for the shared store."""
        self._memory = memory
        self._shared = shared
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._clock = clock
        self._probing: asyncio.Task[None] | None = None
        self._changes = 0

    def state(self) -> State:
        """`memory` while the shared store does not answer."""
        return "ok" if self._probing is None else "memory"

    # --- best effort, for the cache ring ---

    def recall(self, key: bytes) -> bytes | None:
        """What is in this process's memory."""
        return self._memory.find(key)

    async def find(self, key: bytes) -> bytes | None:
        value = self._memory.find(key)
        if value is None and self._shared is not None and self._probing is None:
            changes = self._changes
            value = self._learn(key, await self._try(self._shared.get(key)), changes)
        return value

    async def find_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found = [self._memory.find(key) for key in keys]
        missing = [index for index, value in enumerate(found) if value is None]
        if missing and self._shared is not None and self._probing is None:
            changes = self._changes
            values = await self._try(self._shared.get_many([keys[index] for index in missing]))
            for index, value in zip(missing, values or (), strict=False):
                found[index] = self._learn(keys[index], value, changes)
        return found

    async def keep(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        """Here at once, and for the other processes if the shared store takes them."""
        for key, value in entries:
            self._memory.keep(key, value, ttl_s)
        if self._shared is not None and self._probing is None:
            await self._try(
                self._shared.put_many([(key, self._dated(v, ttl_s)) for key, v in entries], ttl_s)
            )

    def forget(self, key: bytes) -> None:
        """A value that its reader could not use: ask the shared store next time."""
        self._memory.drop(key)

    # --- the port: what the shared store says ---

    async def get(self, key: bytes) -> bytes | None:
        value = self._memory.find(key)
        if value is not None or self._shared is None:
            return value
        changes = self._changes
        return self._learn(key, await self._shared.get(key), changes)

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        if self._shared is None:
            return await self._memory.put(key, value, ttl_s)
        try:
            if len(value) <= MAX_VALUE_BYTES:
                await self._shared.put(key, self._dated(value, ttl_s), ttl_s)
        finally:
            self._changed(key)
        return None

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        if self._shared is None:
            return await self._memory.add(key, value, ttl_s)
        try:
            found = await self._shared.add(key, self._dated(value, ttl_s), ttl_s)
        finally:
            self._changed(key)
        return None if found is None else found[_DUE.size :]

    async def delete(self, key: bytes) -> None:
        if self._shared is None:
            return self._memory.drop(key)
        try:
            await self._shared.delete(key)
        finally:
            self._changed(key)
        return None

    async def ping(self) -> None:
        if self._shared is not None:
            await self._shared.ping()

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._memory.close()
        if self._shared is not None:
            await self._shared.close()

    # --- what a shared value looks like ---

    def _dated(self, value: bytes, ttl_s: float) -> bytes:
        return _DUE.pack(int((self._clock() + ttl_s) * 1000)) + value

    def _changed(self, key: bytes) -> None:
        """The tier never holds what was written through the port: another process may write it next."""
        self._changes += 1
        self._memory.drop(key)

    def _learn(self, key: bytes, dated: bytes | None, changes: int) -> bytes | None:
        """The value inside, kept here for as long as it still has."""
        if dated is None or len(dated) < _DUE.size:
            return None
        value = dated[_DUE.size :]
        left_s = _DUE.unpack_from(dated)[0] / 1000 - self._clock()
        if left_s <= 0:
            return None
        if changes == self._changes:
            # Else it may be from before a change that was made while we asked.
            self._memory.keep(key, value, left_s)
        return value

    # --- losing the shared store, and finding it again ---

    async def _try(self, asking: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asking
        except (StoreFailed, TimeoutError) as error:
            self._lose(error)
            return None

    def _lose(self, error: StoreFailed | TimeoutError) -> None:
        if self._probing is not None:
            return
        reason = str(error) or f"no answer in {self._timeout_s:g} s"
        _log.warning("the shared answers are gone, going on with this process's own: %s", reason)
        self._probing = asyncio.get_running_loop().create_task(self._probe(), name="answers probe")
        self._on_change("memory")

    async def _probe(self) -> None:
        """Write and read again until that works: a store that is full or read-only still answers a ping."""
        assert self._shared is not None  # noqa: S101 - only a shared store is lost
        key = secrets.token_bytes(32)
        while True:
            # Not all gateways at once.
            await asyncio.sleep(PROBE_S * (0.5 + random.random()))  # noqa: S311 - jitter, not a secret
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._shared.put(key, key, _PROBE_TTL_S)
                    if await self._shared.get(key) == key:
                        break
            except (StoreFailed, TimeoutError):
                continue
            except Exception:
                _log.exception("probing the shared answers failed")
        self._probing = None
        _log.warning("the shared answers are back")
        self._on_change("ok")
