"""What can be asked of an event stream. Fed by `stores/spool`'s drain; never on the path of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Topic = Literal["inference.requests", "inference.completed", "billing.events", "alerts.events"]


@dataclass(frozen=True, slots=True)
class Event:
    """One message. Consumers drop what they have seen by `id`: delivery is at least once."""

    topic: Topic
    key: str
    """Events of one key keep their order; the tenant's id."""
    id: str
    payload: bytes
    """JSON."""


class EventStream(Protocol):
    async def publish(self, events: Sequence[Event]) -> None:
        """Returns when the stream has them all. Raises `StoreFailed`."""

    async def ping(self) -> None: ...

    async def close(self) -> None: ...
