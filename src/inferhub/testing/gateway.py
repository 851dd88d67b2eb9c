"""The parts of a gateway without a network, workers or models: for tests that look at its application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from inferhub.core.call import Call, Emit
from inferhub.core.errors import NoEndpoint
from inferhub.egress import check_url
from inferhub.gateway.admin.desk import Desk
from inferhub.gateway.app import GatewayParts
from inferhub.gateway.blobs import BlobLinks
from inferhub.gateway.desired import Desired
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.gateway.sockets.realtime.secrets import ClientSecrets
from inferhub.gateway.tokens import TokenVerifier
from inferhub.orchestrator.service import Orchestrator
from inferhub.routing import Decisions
from inferhub.settings.spec import load_spec
from inferhub.stores import (
    open_answers,
    open_blobs,
    open_catalog,
    open_counters,
    open_responses,
    open_usage,
)
from inferhub.telemetry.metrics import Metrics
from inferhub.transport.reach import Reach

PEPPER = b"pepper of a test"


@asynccontextmanager
async def gateway_parts(folder: Path) -> AsyncIterator[GatewayParts]:
    """Real stores in `folder` and in memory; every model is unknown."""
    async with AsyncExitStack() as stack:
        catalog = await open_catalog(f"sqlite:///{folder}/catalog.db")
        stack.push_async_callback(catalog.close)
        usage = await open_usage(f"sqlite:///{folder}/usage.db")
        stack.push_async_callback(usage.close)
        answers = await open_answers("memory://", pepper=PEPPER, memory_bytes=2**20)
        stack.push_async_callback(answers.close)
        counters = await open_counters("memory://")
        stack.push_async_callback(counters.close)
        responses = await open_responses(f"sqlite:///{folder}/responses.db", pepper=PEPPER, max_bytes=2**24)
        stack.push_async_callback(responses.close)
        blobs = await open_blobs(f"file://{folder}/blobs", ttl_s=60, max_bytes=2**24)
        stack.push_async_callback(blobs.close)
        reach = Reach()
        nobody = Orchestrator(reach=reach, polled=(), poll_s=1, heartbeat_s=1, lease_s=5, drain_grace_s=0)
        stack.push_async_callback(nobody.close)
        fleet = Fleet(engines=nobody, providers=nobody, reach=reach, is_remote=lambda _: False)
        desired = Desired(
            catalog,
            fleet,
            pepper=PEPPER,
            parse=lambda text: load_spec(text, env={}),
            tokens=TokenVerifier(_no_issuer),
            refresh_s=1,
        )
        yield GatewayParts(
            pipeline=_no_model,
            fleet=fleet,
            desired=desired,
            desk=Desk(catalog, desired.refresh, PEPPER),
            answers=answers,
            counters=counters,
            usage=usage,
            responses=KeptResponses(responses, ttl_s=60, max_history_bytes=2**20),
            links=BlobLinks(blobs, PEPPER),
            secrets=ClientSecrets(PEPPER),
            readiness=fleet.readiness,
            check_url=check_url,
            metrics=Metrics(),
            limits=GatewayLimits(),
            decisions=Decisions(),
        )


async def _no_model(call: Call, emit: Emit) -> None:
    raise NoEndpoint


async def _no_issuer(url: str) -> bytes:
    raise NoEndpoint
