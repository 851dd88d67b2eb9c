"""Opens what a gateway stands on, from the settings, and puts its parts together.

Called by assembly, which runs it. What is opened is closed by the stack that it was opened with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from inferhub.accounting import Accounting, Known
from inferhub.calls import open_calls, open_tokens
from inferhub.egress import check_url
from inferhub.gateway.admin.desk import Desk
from inferhub.gateway.app import GatewayParts
from inferhub.gateway.blobs import BlobLinks
from inferhub.gateway.desired import Desired
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.gateway.sockets.realtime.secrets import ClientSecrets
from inferhub.gateway.sockets.switchboard import OpenSockets
from inferhub.gateway.tokens import TokenVerifier
from inferhub.hosting import parse_spec
from inferhub.routing import Decisions
from inferhub.settings import Loaded, Settings
from inferhub.stores import open_blobs
from inferhub.stores import open_catalog as open_catalog_url
from inferhub.stores.blobs.keeper import Blobs
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.pepper import load_pepper
from inferhub.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Standing:
    """What a gateway stands on; closed by the stack it was opened with."""

    settings: Settings
    pepper: bytes
    catalog: Catalog
    fleet: Fleet
    tokens: TokenVerifier
    desired: Desired
    blobs: Blobs


@asynccontextmanager
async def open_catalog(settings: Settings) -> AsyncIterator[Catalog]:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    catalog = await open_catalog_url(settings.catalog_url)
    try:
        yield catalog
    finally:
        await catalog.close()


async def open_gateway(stack: AsyncExitStack, loaded: Loaded, fleet: Fleet) -> Standing:
    settings = loaded.settings
    catalog = await stack.enter_async_context(open_catalog(settings))
    pepper = load_pepper(settings)
    await catalog.check_pepper(pepper)
    tokens = open_tokens(stack)
    desired = Desired(
        catalog,
        fleet,
        pepper=pepper,
        parse=lambda text: parse_spec(loaded, text),
        tokens=tokens,
        refresh_s=settings.key_refresh_s,
    )
    blobs = await open_blobs(
        settings.blobs_url, ttl_s=settings.blobs_ttl_s, max_bytes=settings.blobs_max_bytes
    )
    stack.push_async_callback(blobs.close)
    return Standing(settings, pepper, catalog, fleet, tokens, desired, blobs)


def gateway_parts(
    stack: AsyncExitStack, opened: Standing, accounting: Accounting, metrics: Metrics
) -> GatewayParts:
    settings, pepper, fleet, desired = opened.settings, opened.pepper, opened.fleet, opened.desired
    links = BlobLinks(opened.blobs, pepper, public_url=settings.public_url)

    def readiness() -> Mapping[str, object]:
        state = fleet.readiness()
        # A full ledger refuses every call, so calls belong to another gateway.
        has_room = accounting.ledger.has_room
        return {
            **state,
            "ready": state["ready"] and has_room,
            "ledger_full": not has_room,
            "stores": {**desired.health(), **accounting.health()},
        }

    decisions = Decisions()
    return GatewayParts(
        pipeline=open_calls(
            stack,
            settings,
            fleet,
            desired,
            accounting=accounting,
            metrics=metrics,
            keep=links.keep,
            decisions=decisions,
        ),
        fleet=fleet,
        desired=desired,
        desk=Desk(opened.catalog, desired.catch_up, pepper),
        answers=accounting.answers,
        counters=accounting.counters,
        usage=accounting.usage,
        responses=KeptResponses(
            accounting.responses,
            ttl_s=settings.responses_ttl_s,
            max_history_bytes=settings.max_body_bytes,
        ),
        links=links,
        readiness=readiness,
        check_url=lambda url: check_url(url, settings.egress_allow, param="webhook_url"),
        metrics=metrics,
        limits=_gateway_limits(settings),
        cors_origins=settings.cors_origins,
        sockets=OpenSockets(),
        decisions=decisions,
        secrets=ClientSecrets(pepper),
    )


def known(desired: Desired, fleet: Fleet) -> Known:
    return Known(
        budgets=desired.budgets,
        book=desired.quotas,
        prices=desired.prices,
        tenants=lambda: desired.people().tenants,
        # Which model of a route a crash cut off is not written down; the likeliest one is billed.
        model_of=lambda name: fleet.directory().primary(name),
        is_current=lambda: desired.failure is None,
    )


def _gateway_limits(settings: Settings) -> GatewayLimits:
    return GatewayLimits(**{name: getattr(settings, name) for name in GatewayLimits.__dataclass_fields__})
