"""Keeps files for tenants: names that cannot be guessed, an age at which they go, a bound on all together.

Used by the gateway's signed addresses. The same rules for every `Objects`; gateways may share one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from inferhub.core.errors import StoreFailed
from inferhub.stores.blobs.base import Entry, Objects

_log = logging.getLogger(__name__)

KINDS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""Ending of a name → media type. What has another one is not served, whoever put it there."""

_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE = re.compile(r"[0-9a-f]{32}\.([a-z0-9]{1,8})")
_SWEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Blob:
    data: bytes
    media_type: str


class Blobs:
    """One per gateway process. `run` belongs into a task."""

    def __init__(
        self,
        objects: Objects,
        *,
        ttl_s: float,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = objects
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._size_bytes: int | None = None
        """As of the last sweep, and what this process has put since; None before the first."""
        self._sweeping = asyncio.Lock()

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    async def put(self, tenant: str, data: bytes, ending: str) -> str:
        """The file's name within the tenant's folder. Raises `StoreFailed`."""
        if not _TENANT.fullmatch(tenant) or ending not in KINDS:
            raise ValueError("a tenant or a kind of file that cannot be kept")
        if len(data) > self._max_bytes:
            raise StoreFailed(f"{len(data)} bytes are more than all files together may have.")
        if self._size_bytes is None or self._size_bytes + len(data) > self._max_bytes:
            await self.sweep(room_bytes=len(data))
        file = f"{secrets.token_hex(16)}.{ending}"
        await self._objects.write(f"{tenant}/{file}", data)
        self._size_bytes = (self._size_bytes or 0) + len(data)
        return file

    async def get(self, tenant: str, file: str) -> Blob | None:
        """None where it never was, or is gone. Raises `StoreFailed`."""
        match = _FILE.fullmatch(file)
        media_type = KINDS.get(match[1]) if match else None
        if media_type is None or not _TENANT.fullmatch(tenant):
            return None
        found = await self._objects.read(f"{tenant}/{file}")
        if found is None or self._is_over(found[0]):
            return None
        return Blob(found[1], media_type)

    async def sweep(self, *, room_bytes: int = 0) -> None:
        """Remove what is too old, then the oldest until `room_bytes` fit."""
        async with self._sweeping:
            staying: list[Entry] = []
            async for entry in self._objects.entries():
                if self._is_over(entry):
                    await self._objects.remove(entry.name)
                else:
                    staying.append(entry)
            staying.sort(key=lambda entry: entry.written_s, reverse=True)
            size = sum(entry.size_bytes for entry in staying)
            goal_bytes = self._max_bytes - room_bytes
            if size > goal_bytes:
                # Some more, so that not each further file costs a look at all of them.
                goal_bytes -= goal_bytes // 10
            while staying and size > goal_bytes:
                oldest = staying.pop()
                await self._objects.remove(oldest.name)
                size -= oldest.size_bytes
            self._size_bytes = size

    async def run(self) -> None:
        """Sweeps from time to time, until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except StoreFailed as error:
                _log.warning("old files could not be removed: %s", error.message)
            await asyncio.sleep(min(_SWEEP_S, self._ttl_s))

    async def close(self) -> None:
        await self._objects.close()

    def _is_over(self, entry: Entry) -> bool:
        return entry.written_s + self._ttl_s <= self._clock()
