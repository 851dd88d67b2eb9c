"""The usage store as one end of the spool: takes finished calls, passes over those that have only begun."""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores.usage.base import UsageStore


class UsageConsumer:
    """Fed by `stores/spool`'s drain."""

    name = "usage"
    wants_begins = False

    def __init__(self, store: UsageStore) -> None:
        self._store = store

    async def take(self, records: Sequence[Begin | UsageEvent], token: str) -> None:
        """Returns when the store has them. Raises `StoreFailed`; the same batch may come again."""
        events = [record for record in records if isinstance(record, UsageEvent)]
        if events:
            await self._store.write(events, token=token)
