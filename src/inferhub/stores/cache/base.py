"""What can be asked of the answer store. Asked by the cache ring and by idempotency, through a memory tier.

Values are opaque and, outside this process, sealed: an answer may repeat what the prompt said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MAX_VALUE_BYTES = 4 * 1024 * 1024


class AnswerStore(Protocol):
    """Every method raises `StoreFailed` and nothing foreign. Keys are 32-byte digests."""

    async def get(self, key: bytes) -> bytes | None:
        """None for an unknown, expired or damaged entry."""

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """Store or replace. A value over `MAX_VALUE_BYTES` is not stored."""

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        """Store if nothing is there, else return what is there: one winner among all processes."""

    async def delete(self, key: bytes) -> None: ...

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class SharedAnswers(AnswerStore, Protocol):
    """What the stores outside of this process can do besides; `tiered` and `sealed` ask for it."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One answer for each key, in one question."""

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None: ...

    async def discard(self, key: bytes, value: bytes) -> None:
        """Delete the entry if it still is exactly `value`: a damaged one, that nobody replaced meanwhile."""
