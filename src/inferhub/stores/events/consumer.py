"""The event stream as one end of the spool: every record becomes its messages."""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores.events.base import EventStream
from inferhub.stores.events.records import to_events


class EventConsumer:
    """Fed by `stores/spool`'s drain."""

    name = "events"
    wants_begins = True

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    async def take(self, records: Sequence[Begin | UsageEvent], token: str) -> None:
        """Returns when the stream has them. Raises `StoreFailed`; the same batch may come again.

        `token` is not needed here: whoever reads the stream drops what it knows by id.
        """
        await self._stream.publish([event for record in records for event in to_events(record)])
