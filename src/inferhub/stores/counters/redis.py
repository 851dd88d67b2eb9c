"""Counters in Redis or Valkey, shared by every gateway: one Lua script a question, run where the numbers are.

Opened by `stores.open_counters`; the scripts are in `lua/`. Connects on first use, so that a gateway starts
without its Redis.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources import files

from redis.exceptions import NoScriptError, ResponseError

from inferhub.core.clock import new_id
from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation, Unit
from inferhub.stores.counters.base import LEASE_S, REMEMBER_S, countable, is_held
from inferhub.stores.counters.redis_pipe import RedisPipe

TIMEOUT_S = 0.5
RENEWED_AT_ONCE = 50
"""Reservations of one script, so that none keeps Redis from everybody else for long."""

_PREFIX = "inferhub:{counters}:"
# The braces put all keys into one slot of a cluster: a call is held against its key, project and tenant
# at once, and a script reaches one slot.
_LEASE = str(int(LEASE_S * 1000))
_REMEMBER = str(int(REMEMBER_S * 1000))

log = logging.getLogger(__name__)


async def open_counters(
    url: str, *, timeout_s: float = TIMEOUT_S, now_ms: Callable[[], int] | None = None
) -> RedisCounters:
    """For `redis://…` and `rediss://…`. Raises `SetupError` for a URL that cannot be read.

    `now_ms` replaces the server's clock, for tests alone: gateways' clocks differ.
    """
    return RedisCounters(RedisPipe(url, timeout_s), now_ms)


class RedisCounters:
    """Answers `Counters` from Redis 7 or later, or any Valkey; the server's clock is the only one.

    What Redis loses is counted from zero again: rates are right after a minute, budgets only where it
    persists, so run it with `appendonly yes`, and with `maxmemory-policy noeviction`, for an evicted
    budget is a refilled one. Every key has a time to live, at most a month and a day.
    """

    def __init__(self, pipe: RedisPipe, now_ms: Callable[[], int] | None = None) -> None:
        self._pipe = pipe
        self._now_ms = now_ms
        self._has_warned = False

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        arguments = [self._now(), ticket, _LEASE, _REMEMBER]
        for claim in claims:
            meter = claim.meter
            arguments += (meter.window, _flag(is_held(meter)), str(meter.limit), str(countable(claim.amount)))
        answer = await self._run(RESERVE, _keys(ticket, (claim.meter for claim in claims)), arguments)
        granted, at_ms, refused, wait_ms = answer[1:5]
        readings = _readings((claim.meter for claim in claims), answer[5:])
        if granted:
            return Reservation(ticket, tuple(claims), readings, at_ms / 1000)
        return Refusal(claims[refused - 1], readings, None if wait_ms < 0 else wait_ms / 1000)

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        at_ms = str(round(reservation.reserved_at_s * 1000))
        arguments = [self._now(), reservation.id, _LEASE, _REMEMBER, at_ms]
        for claim in reservation.claims:
            meter = claim.meter
            real = str(countable(used.get(meter.key, claim.amount)))
            arguments += (meter.window, *_flags(meter), str(countable(claim.amount)), real)
        meters = [claim.meter for claim in reservation.claims]
        answer = await self._run(SETTLE, _keys(reservation.id, meters), arguments)
        return _readings(meters, answer[1:])

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        for start in range(0, len(reservations), RENEWED_AT_ONCE):
            keys: list[str] = []
            arguments = [self._now(), _LEASE, _REMEMBER]
            for reservation in reservations[start : start + RENEWED_AT_ONCE]:
                held = [claim for claim in reservation.claims if is_held(claim.meter)]
                keys += _keys(reservation.id, (claim.meter for claim in held))
                at_ms = str(round(reservation.reserved_at_s * 1000))
                arguments += (reservation.id, at_ms, str(len(held)))
                for claim in held:
                    arguments += (claim.meter.window, str(countable(claim.amount)))
            await self._run(RENEW, keys, arguments)

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        arguments = [self._now(), ticket, _LEASE, _REMEMBER]
        for claim in used:
            arguments += (claim.meter.window, *_flags(claim.meter), str(countable(claim.amount)))
        await self._run(CHARGE, _keys(ticket, (claim.meter for claim in used)), arguments)

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        arguments = [self._now(), _LEASE]
        for meter in meters:
            arguments += (meter.window, _flag(is_held(meter)))
        answer = await self._run(READ, [f"{_PREFIX}m:{meter.key}" for meter in meters], arguments)
        return _readings(meters, answer[1:])

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        asker = new_id("ask")
        ttl_ms = str(max(1, int(ttl_s * 1000)))
        return (await self._run(MARK_ONCE, [f"{_PREFIX}o:{mark}"], [asker, ttl_ms]))[0] == 1

    async def ping(self) -> None:
        try:
            await self._pipe.ask(_pack("PING"))
        except ResponseError as error:
            raise _refused(error) from error

    async def close(self) -> None:
        await self._pipe.close()

    def _now(self) -> str:
        return str(self._now_ms()) if self._now_ms else ""

    async def _run(self, script: Script, keys: Sequence[str], arguments: Iterable[str]) -> list[int]:
        rest = (str(len(keys)), *keys, *arguments)
        try:
            try:
                reply = await self._pipe.ask(_pack("EVALSHA", script.sha, *rest))
            except NoScriptError:
                # Redis has been restarted or its scripts were flushed; this also makes it known again.
                reply = await self._pipe.ask(_pack("EVAL", script.text, *rest))
        except ResponseError as error:
            raise _refused(error) from error
        answer = [int(number) for number in reply.split()]
        if script.counts_junk and answer[0] and not self._has_warned:
            self._has_warned = True
            log.error(
                "Redis held %d keys under %r that InferHub did not write; they were deleted and count from "
                "zero. Does something else write into this database?",
                answer[0],
                _PREFIX,
            )
        return answer


class Script:
    """A Lua script of this folder, with what they all begin with in front."""

    def __init__(self, name: str, *, counts_junk: bool = True) -> None:
        self._name = name
        self.counts_junk = counts_junk

    @cached_property
    def text(self) -> str:
        folder = files("inferhub.stores.counters") / "lua"
        common = (folder / "common.lua").read_text("utf-8") if self.counts_junk else ""
        return common + (folder / f"{self._name}.lua").read_text("utf-8")

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


RESERVE = Script("reserve")
SETTLE = Script("settle")
RENEW = Script("renew")
CHARGE = Script("charge")
READ = Script("read")
MARK_ONCE = Script("mark_once", counts_junk=False)


def _keys(ticket: str, meters: Iterable[Meter]) -> list[str]:
    return [f"{_PREFIX}t:{ticket}", *(f"{_PREFIX}m:{meter.key}" for meter in meters)]


def _flag(value: bool) -> str:
    return "1" if value else ""


def _flags(meter: Meter) -> tuple[str, str]:
    return _flag(is_held(meter)), _flag(meter.unit is Unit.USD)


def _readings(meters: Iterable[Meter], numbers: Sequence[int]) -> tuple[Reading, ...]:
    return tuple(
        Reading(meter, used, left_ms / 1000)
        for meter, used, left_ms in zip(meters, numbers[::2], numbers[1::2], strict=True)
    )


def _pack(*words: str) -> bytes:
    head = f"*{len(words)}\r\n"
    if "".join(words).isascii():
        # Lengths are in bytes; nearly always these are those.
        return (head + "".join([f"${len(word)}\r\n{word}\r\n" for word in words])).encode("ascii")
    parts = [head.encode()]
    for word in words:
        encoded = word.encode("utf-8", "surrogatepass")  # a lone surrogate is a name like any other
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def _refused(error: ResponseError) -> StoreFailed:
    return StoreFailed(f"Redis refused: {error}")
