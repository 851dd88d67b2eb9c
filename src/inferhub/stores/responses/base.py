"""What can be asked of the stored responses. Asked by the routes under `/v1/responses` alone.

Every row has an owner, and no question crosses owners. Values are opaque and, outside this process, sealed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

MAX_VALUE_BYTES = 32 * 1024 * 1024
"""Of one response with its input; a larger one is refused."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One response with its input."""

    id: str
    previous_id: str
    """The response that it continues; empty for the first of a conversation."""
    value: bytes
    item_ids: tuple[str, ...] = ()
    """Of its input and its output, to be found by; not read back."""


class ResponseStore(Protocol):
    """Every method raises `StoreFailed` and nothing foreign."""

    async def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        """Store or replace."""

    async def chain(
        self, owner: str, response_id: str, *, max_depth: int, max_bytes: int
    ) -> tuple[Stored, ...]:
        """The response and those before it, newest first; empty where it is unknown or expired.

        Ends before one that is gone, after `max_depth`, and with the one that goes beyond `max_bytes`.
        """

    async def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        """The newest response with each item; without those that are unknown."""

    async def delete(self, owner: str, response_id: str) -> bool:
        """Whether it was there."""

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
