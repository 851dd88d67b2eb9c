"""A fleet that orchestrators share through Redis or Valkey: one Lua script a question.

Opened by `stores.open_fleet`. The server's clock decides. Connects on first use, so that an orchestrator
starts without its Redis. Every key has a time to live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from inferhub.core.errors import StoreFailed
from inferhub.stores.fleet.base import Sighting, Wanted
from inferhub.stores.redis_client import open_redis

TIMEOUT_S = 2.0
"""Of any question, a lost connection included."""
MAX_CONNECTIONS = 8

# The braces put all keys into one slot of a cluster: a script reaches one.
_PREFIX = "inferhub:{fleet}:"
_SEEN = (f"{_PREFIX}seen", f"{_PREFIX}seen:due")
_WANTS = (f"{_PREFIX}wants", f"{_PREFIX}wants:due")
_LEADER = f"{_PREFIX}leader"

# A field holds its rank, when it was heard, and the record. Ranks are compared as text: numbers of Lua are
# exact up to 2^53 only.
_RANK_DIGITS = 20
_UNRANKED = "0" * 2 * _RANK_DIGITS
_RANK_END = len(_UNRANKED)
_HEARD_END = _RANK_END + 16

_COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)) do
  redis.call('HDEL', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
end
"""
_PUT = f"""{_COMMON}
local ttl = tonumber(ARGV[1])
for i = 2, #ARGV, 4 do
  local id, rank, age, record = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), ARGV[i + 3]
  local known = redis.call('HGET', KEYS[1], id)
  local rises = not known or rank == '{_UNRANKED}' or rank > string.sub(known, 1, {_RANK_END})
  if rises and ttl > age then
    redis.call('HSET', KEYS[1], id, rank .. string.format('%016.0f', now - age) .. record)
    redis.call('ZADD', KEYS[2], now - age + ttl, id)
  end
end
for _, key in ipairs(KEYS) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end
"""
_LIST = f"""{_COMMON}
return {{string.format('%.0f', now), redis.call('HGETALL', KEYS[1])}}
"""
_FORGET = f"""{_COMMON}
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and string.sub(known, 1, {_RANK_DIGITS}) <= ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
end
"""
_LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RESIGN = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


async def open_fleet(url: str, *, timeout_s: float = TIMEOUT_S) -> RedisFleet:
    """For `redis://…` and `rediss://…`. Raises `SetupError` for a URL that cannot be read."""
    client = open_redis(url, setting="fleet_url", timeout_s=timeout_s, max_connections=MAX_CONNECTIONS)
    return RedisFleet(client, timeout_s)


class RedisFleet:
    """A `FleetStore` on Redis 7 or later, or any Valkey. Who is there and who leads may be lost with it, and
    comes again within one time to live; then, for as long, two may lead."""

    def __init__(self, client: Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._is_closed = False

    async def saw(self, sightings: Sequence[Sighting], ttl_s: float) -> None:
        words: list[str | bytes] = []
        for one in sightings:
            words += (one.id, _padded(one.incarnation) + _padded(one.seq), _ms(one.age_s), one.record)
        if words:
            await self._eval(_PUT, _SEEN, [_ms(ttl_s), *words])

    async def sightings(self) -> Sequence[Sighting]:
        now_ms, values = await self._eval(_LIST, _SEEN)
        return [
            Sighting(
                id_.decode(),
                int(value[:_RANK_DIGITS]),
                int(value[_RANK_DIGITS:_RANK_END]),
                value[_HEARD_END:],
                max(0, int(now_ms) - int(value[_RANK_END:_HEARD_END])) / 1000,
            )
            for id_, value in zip(values[::2], values[1::2], strict=True)
        ]

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        await self._eval(_FORGET, _SEEN, [id, _padded(incarnation)])

    async def want(self, wanted: Wanted, ttl_s: float) -> None:
        await self._eval(_PUT, _WANTS, [_ms(ttl_s), wanted.holder, _UNRANKED, "0", wanted.record])

    async def wants(self) -> Sequence[Wanted]:
        _, values = await self._eval(_LIST, _WANTS)
        found = zip(values[::2], values[1::2], strict=True)
        return [Wanted(holder.decode(), value[_HEARD_END:]) for holder, value in sorted(found)]

    async def lead(self, holder: str, ttl_s: float) -> bool:
        return bool(await self._eval(_LEAD, [_LEADER], [holder, str(max(1, int(_ms(ttl_s))))]))

    async def resign(self, holder: str) -> None:
        await self._eval(_RESIGN, [_LEADER], [holder])

    async def close(self) -> None:
        self._is_closed = True
        async with self._asking():
            await self._client.aclose()

    async def _eval(self, script: str, keys: Sequence[str], words: Iterable[str | bytes] = ()) -> Any:
        if self._is_closed:
            raise StoreFailed("The fleet's store is closed.")
        async with self._asking():
            # Whole each time: some hundred bytes once a second, and no script that a restarted server forgot.
            return await self._client.eval(script, len(keys), *keys, *words)

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


def _padded(number: int) -> str:
    return f"{number:0{_RANK_DIGITS}d}"


def _ms(duration_s: float) -> str:
    return str(max(0, int(duration_s * 1000)))
