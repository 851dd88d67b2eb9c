"""Answers in Redis or Valkey, shared by every gateway. Opened by `stores.open_answers`.

Connects on first use, so that a gateway starts without its Redis. Every key has a time to live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from inferhub.core.errors import StoreFailed
from inferhub.stores.cache.base import MAX_VALUE_BYTES
from inferhub.stores.redis_client import open_redis

TIMEOUT_S = 0.5
MAX_CONNECTIONS = 32
_AT_ONCE = 256
_PREFIX = b"inferhub:answers:"

# Also what is no string: then it is none of ours.
_DISCARD = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


async def open_shared(url: str, *, timeout_s: float = TIMEOUT_S) -> RedisAnswers:
    """For `redis://…` and `rediss://…`. Raises `SetupError` for a URL that cannot be read."""
    client = open_redis(url, setting="cache_url", timeout_s=timeout_s, max_connections=MAX_CONNECTIONS)
    return RedisAnswers(client, timeout_s)


class RedisAnswers:
    """Answers `SharedAnswers` from Redis 7 or later, or any Valkey, which may evict entries."""

    def __init__(self, client: Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def get(self, key: bytes) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        await self.put_many([(key, value)], ttl_s)

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        if len(value) > MAX_VALUE_BYTES:
            raise StoreFailed(f"{len(value)} bytes are too many for an entry.")
        async with self._asking():
            try:
                return await self._add(key, value, ttl_s)
            except ResponseError as error:
                if not str(error).startswith("WRONGTYPE"):
                    raise
                await self._client.eval(_DISCARD, 1, _PREFIX + key, b"")
                return await self._add(key, value, ttl_s)

    async def _add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        found: Any = await self._client.set(_PREFIX + key, value, px=_ms(ttl_s), nx=True, get=True)
        return found if found is None else bytes(found)

    async def delete(self, key: bytes) -> None:
        async with self._asking():
            await self._client.delete(_PREFIX + key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(keys), _AT_ONCE):
            async with self._asking():
                # MGET, also for one: what is no string reads as absent instead of as an error.
                answer: list[Any] = await self._client.mget(
                    [_PREFIX + key for key in keys[start : start + _AT_ONCE]]
                )
                found += answer
        return found

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        fitting = [(key, value) for key, value in entries if len(value) <= MAX_VALUE_BYTES]
        for start in range(0, len(fitting), _AT_ONCE):
            async with self._asking():
                pipeline = self._client.pipeline(transaction=False)
                for key, value in fitting[start : start + _AT_ONCE]:
                    pipeline.set(_PREFIX + key, value, px=_ms(ttl_s))
                await pipeline.execute()

    async def discard(self, key: bytes, value: bytes) -> None:
        async with self._asking():
            await self._client.eval(_DISCARD, 1, _PREFIX + key, value)

    async def ping(self) -> None:
        async with self._asking():
            await self._client.ping()

    async def close(self) -> None:
        async with self._asking():
            await self._client.aclose()

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """The border: bounded in time, and nothing of the driver's gets out."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise StoreFailed(f"Redis did not answer in {self._timeout_s:g} s.") from error
        except (RedisError, OSError) as error:
            raise StoreFailed(f"Redis failed: {type(error).__name__}: {error}") from error


def _ms(ttl_s: float) -> int:
    return max(1, int(ttl_s * 1000))
