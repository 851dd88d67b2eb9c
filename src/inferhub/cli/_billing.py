"""What the verbs about usage and money share: the open store, and exact dollars as text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferhub.settings import Settings
    from inferhub.stores.usage.base import UsageStore


@asynccontextmanager
async def open_usage(settings: Settings) -> AsyncIterator[UsageStore]:
    """The usage store of the settings. Raises `SetupError` or `StoreFailed`."""
    from inferhub.stores import open_usage as open_url

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = await open_url(settings.usage_url)
    try:
        yield store
    finally:
        await store.close()


def usd(amount: Decimal | int) -> str:
    """Every digit that is not a trailing zero, and at least cents."""
    whole, _, fraction = f"{amount:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
