"""F2: one folder is one question, one file in it one answer; a URL's scheme selects the answer.

Opened by assembly and the CLI. No store is on the request path: the gateway reads snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inferhub.core.errors import SetupError
from inferhub.settings.nearest import did_you_mean

if TYPE_CHECKING:
    from inferhub.stores.blobs.keeper import Blobs
    from inferhub.stores.cache.tiered import State, TieredAnswers
    from inferhub.stores.catalog.base import Catalog
    from inferhub.stores.counters.base import Counters
    from inferhub.stores.events.base import EventStream
    from inferhub.stores.fleet.base import FleetStore
    from inferhub.stores.responses.base import ResponseStore
    from inferhub.stores.usage.base import UsageStore

# Imported on use: the database toolkit takes half a second that `inferhub --help` does not have.
_CATALOGS = {
    "postgresql": "inferhub.stores.catalog.postgres",
    "sqlite": "inferhub.stores.catalog.sqlite",
}


async def open_catalog(url: str) -> Catalog:
    """Open and, where needed, migrate the catalog behind `url`; close it with `await catalog.close()`.

    Raises `SetupError` (`CatalogCorrupt` for a damaged one) with the remedy.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _CATALOGS:
        # Not a character more: behind a colon there may be a password.
        scheme = scheme.partition(":")[0]
        raise SetupError(
            f"catalog_url starts with {scheme[:40]!r}, which is no catalog; "
            f"available: {', '.join(sorted(_CATALOGS))}.{did_you_mean(scheme, _CATALOGS)}",
            param="catalog_url",
        )
    catalog: Catalog = await import_module(_CATALOGS[scheme]).open_catalog(url)
    return catalog


_USAGE = {
    "clickhouse": "inferhub.stores.usage.clickhouse",
    "clickhouses": "inferhub.stores.usage.clickhouse",
    "postgresql": "inferhub.stores.usage.postgres",
    "sqlite": "inferhub.stores.usage.sqlite",
}
_EVENTS = {"kafka": "inferhub.stores.events.kafka"}


async def open_usage(url: str) -> UsageStore:
    """Open and, where needed, migrate the usage store behind `url`; close it with `await store.close()`.

    Raises `SetupError` with the remedy; its `wire_code` is `store_unreachable` where only the server is away.
    """
    store: UsageStore = await _module(url, _USAGE, "usage_url").open_usage(url)
    return store


async def open_events(url: str) -> EventStream:
    """Connect to the event stream behind `url`; close it with `await stream.close()`.

    Raises `SetupError` with the remedy; its `wire_code` is `store_unreachable` where only the server is away.
    """
    stream: EventStream = await _module(url, _EVENTS, "events_url").open_events(url)
    return stream


_COUNTERS = {
    "memory": "inferhub.stores.counters.memory",
    "redis": "inferhub.stores.counters.redis",
    "rediss": "inferhub.stores.counters.redis",
    "sqlite": "inferhub.stores.counters.sqlite",
}


async def open_counters(url: str, *, timeout_s: float = 0.0) -> Counters:
    """Open the counters behind `url`, which answer within `timeout_s` or raise; `await counters.close()`.

    Raises `SetupError` with the remedy. A Redis that is away is no error: it is connected to on first use.
    """
    module = _module(url, _COUNTERS, "counters_url")
    # A store gives up a silent connection after its own time; not before its caller has.
    own_s = getattr(module, "TIMEOUT_S", None)
    limits = {} if own_s is None else {"timeout_s": max(own_s, timeout_s)}
    counters: Counters = await module.open_counters(url, **limits)
    return counters


_ANSWERS = {
    "memory": "inferhub.stores.cache.memory",
    "redis": "inferhub.stores.cache.redis",
    "rediss": "inferhub.stores.cache.redis",
    "sqlite": "inferhub.stores.cache.sqlite",
}


async def open_answers(
    url: str,
    *,
    pepper: bytes,
    memory_bytes: int,
    on_change: Callable[[State], None] = lambda _: None,
) -> TieredAnswers:
    """Open the answers behind `url`, with this process's memory in front; close with `await answers.close()`.

    What leaves the process is sealed under a secret made of `pepper`. Raises `SetupError` with the remedy.
    A Redis that is away is no error: it is connected to on first use.
    """
    from inferhub.stores.cache.memory import MemoryAnswers
    from inferhub.stores.cache.sealed import SealedAnswers
    from inferhub.stores.cache.tiered import TieredAnswers

    memory = MemoryAnswers(memory_bytes)
    module = _module(url, _ANSWERS, "cache_url")
    if url.startswith("memory://"):
        return TieredAnswers(memory, None)
    shared = await module.open_shared(url)
    return TieredAnswers(memory, SealedAnswers(shared, pepper), on_change=on_change)


_RESPONSES = {
    "postgresql": "inferhub.stores.responses.postgres",
    "sqlite": "inferhub.stores.responses.sqlite",
}


async def open_responses(url: str, *, pepper: bytes, max_bytes: int) -> ResponseStore:
    """Open the stored responses behind `url`, sealed under a secret made of `pepper`; close with
    `await store.close()`.

    Raises `SetupError` with the remedy; its `wire_code` is `store_unreachable` where only the server is away.
    """
    from inferhub.stores.responses.sealed import SealedResponses

    module = _module(url, _RESPONSES, "responses_url")
    return SealedResponses(await module.open_responses(url, max_bytes=max_bytes), pepper)


_BLOBS = {
    "file": "inferhub.stores.blobs.files",
    "s3": "inferhub.stores.blobs.s3",
}


async def open_blobs(url: str, *, ttl_s: float, max_bytes: int) -> Blobs:
    """Open the files behind `url`; `await blobs.close()`.

    Raises `SetupError` with the remedy. A server that is away is no error: it is connected to on first use.
    """
    from inferhub.stores.blobs.keeper import Blobs

    objects = await _module(url, _BLOBS, "blobs_url").open_objects(url)
    return Blobs(objects, ttl_s=ttl_s, max_bytes=max_bytes)


_FLEETS = {
    "memory": "inferhub.stores.fleet.memory",
    "postgresql": "inferhub.stores.fleet.postgres",
    "redis": "inferhub.stores.fleet.redis",
    "rediss": "inferhub.stores.fleet.redis",
}


async def open_fleet(url: str) -> FleetStore:
    """Open what orchestrators share behind `url`; `await fleet.close()`.

    Raises `SetupError` with the remedy. A server that is away is no error: it is connected to on first use.
    """
    store: FleetStore = await _module(url, _FLEETS, "fleet_url").open_fleet(url)
    return store


def _module(url: str, known: Mapping[str, str], setting: str) -> Any:
    """What answers for the scheme of `url`. Never repeats the URL: it may hold a password."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in known:
        scheme = scheme.partition(":")[0]
        raise SetupError(
            f"{setting} starts with {scheme[:40]!r}; available: {', '.join(sorted(known))}."
            f"{did_you_mean(scheme, known)}",
            param=setting,
        )
    try:
        return import_module(known[scheme])
    except ModuleNotFoundError as error:
        extra = {"postgresql": "postgres", "clickhouses": "clickhouse", "rediss": "redis"}.get(scheme, scheme)
        raise SetupError(
            f"{setting} needs a package that is not installed here ({error.name}): "
            f"pip install 'inferhub[{extra}]'.",
            param=setting,
        ) from error
