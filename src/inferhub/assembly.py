"""The only file that knows what is local and what is remote: builds the services and runs them.

Called by the CLI. `serve` = gateway + worker in one process; `gateway` and `worker` are the same
classes apart, with gRPC between them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from inferhub.accounting import Accounting, Known, open_accounting
from inferhub.backends import backend_class
from inferhub.calls import open_calls, open_tokens
from inferhub.core.audit import Act
from inferhub.core.errors import SetupError
from inferhub.core.tenancy import Role
from inferhub.egress import check_url
from inferhub.gateway.admin.desk import Desk
from inferhub.gateway.app import GatewayParts, build_app
from inferhub.gateway.blobs import BlobLinks
from inferhub.gateway.desired import Desired
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.gateway.server import HttpServer
from inferhub.gateway.sockets.realtime.secrets import ClientSecrets
from inferhub.gateway.sockets.switchboard import OpenSockets
from inferhub.gateway.tokens import TokenVerifier
from inferhub.gateway.turns import Turns
from inferhub.hosting import make_worker, parse_spec
from inferhub.modalities import modalities
from inferhub.process import settle_memory, until_signalled
from inferhub.settings import Loaded, Settings
from inferhub.stores import open_blobs
from inferhub.stores import open_catalog as open_catalog_url
from inferhub.stores.blobs.keeper import Blobs
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue
from inferhub.stores.catalog.pepper import load_pepper
from inferhub.telemetry.loop_lag import watch_loop_lag
from inferhub.telemetry.metrics import Metrics
from inferhub.telemetry.ops import OpsServer
from inferhub.telemetry.ports import listen
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec
from inferhub.transport.local import LocalTransport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Told once, when everything listens and every model is loaded."""

    url: str
    ops_url: str
    models: tuple[str, ...]
    admin_key: str | None = field(default=None, repr=False)
    """Only at the first start on an empty catalog; it is stored hashed and cannot be shown again."""
    chat_model: str | None = None
    """One of `models` that answers chats now; for the lines to copy."""


Announce = Callable[[Ready], None]
Progress = Callable[[str], None]
Readiness = Callable[[], Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Inherited:
    """What one of several gateway processes has from its supervisor instead of making it itself."""

    listener: socket.socket
    turns: Turns
    """Whose it is to accept from `listener`."""
    ops_url: str
    leads: bool
    """Only one makes the first admin key."""
    spec_revision: int | None
    """The catalog's when the first process started; a spec applied since wins over the file's."""
    prepared: Callable[[int], Awaitable[None]]
    """Told the spec's revision; returns when the first key may be made, or has been."""
    expose: Callable[[Metrics, Readiness], None]
    """Takes the place of an operations port."""


@asynccontextmanager
async def open_catalog(settings: Settings) -> AsyncIterator[Catalog]:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    catalog = await open_catalog_url(settings.catalog_url)
    try:
        yield catalog
    finally:
        await catalog.close()


async def serve(
    loaded: Loaded, spec_text: str | None, *, announce: Announce, on_progress: Progress = lambda _: None
) -> None:
    """Everything in one process, until a signal."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        engines = {"local": await _local(stack, loaded.settings, "local", metrics)}
        await _serve_http(
            stack, loaded, spec_text, engines, announce=announce, on_progress=on_progress, metrics=metrics
        )


async def gateway(
    loaded: Loaded,
    spec_text: str | None,
    *,
    announce: Announce,
    on_progress: Progress = lambda _: None,
    inherited: Inherited | None = None,
) -> None:
    """The HTTP side alone; models run on the workers named in the setting `worker`."""
    from inferhub.transport.grpc import GrpcTransport, Limits

    settings = loaded.settings
    if not settings.worker:
        raise SetupError("A gateway needs at least one worker: --worker HOST:PORT.", param="worker")
    codec = Codec(modalities())
    limits = Limits(load_timeout_s=settings.load_timeout_s)
    engines = {
        target: GrpcTransport(target, codec, token=_token(settings), limits=limits)
        for target in dict.fromkeys(settings.worker)
    }
    async with AsyncExitStack() as stack:
        await _serve_http(
            stack,
            loaded,
            spec_text,
            engines,
            announce=announce,
            on_progress=on_progress,
            inherited=inherited,
        )


async def worker(
    loaded: Loaded, spec_text: str | None, *, announce: Announce, on_progress: Progress = lambda _: None
) -> None:
    """The gRPC side alone. Gateways tell it what to load; `spec_text` is loaded before they come."""
    from inferhub.transport import grpc_server

    settings = loaded.settings
    async with AsyncExitStack() as stack:
        service = make_worker(settings, settings.worker_id or f"worker-{os.getpid()}")
        stack.push_async_callback(service.close)
        server = await grpc_server.serve(
            service, settings.worker_listen, Codec(modalities()), token=_token(settings)
        )
        stack.push_async_callback(server.stop, settings.drain_grace_s)
        metrics = Metrics()
        metrics.watch_models(service.models)
        ops = _ops(stack, settings, metrics, lambda: {"ready": True})
        spec = parse_spec(loaded, spec_text) if spec_text else None
        for model in spec.models if spec else ():
            on_progress(model.name)
            await service.load(model)
        settle_memory()
        host = settings.worker_listen.rpartition(":")[0]
        names = tuple(model.name for model in spec.models) if spec else ()
        announce(Ready(f"{host}:{server.port}", _ops_url(settings, ops), names))
        await until_signalled()
        await service.drain(settings.drain_grace_s)


async def _serve_http(
    stack: AsyncExitStack,
    loaded: Loaded,
    spec_text: str | None,
    engines: Mapping[str, Transport],
    *,
    announce: Announce,
    on_progress: Progress,
    inherited: Inherited | None = None,
    metrics: Metrics | None = None,
) -> None:
    """What `serve` and `gateway` share: everything in front of the workers."""
    settings = loaded.settings
    if inherited:
        http = HttpServer(inherited.listener, inherited.turns)
    else:
        http = HttpServer(listen(settings.host, settings.port))
    stack.callback(http.stop)
    opened = await _open(stack, loaded, engines)
    fleet, desired, catalog = opened.fleet, opened.desired, opened.catalog
    await desired.start(await _text_to_serve(catalog, spec_text, inherited), on_progress)
    accounting = await stack.enter_async_context(
        open_accounting(settings, opened.pepper, _known(desired, fleet))
    )
    if inherited:
        await inherited.prepared(desired.spec.revision)
    # Not earlier: a start that fails on the way would take the key, which nobody saw, with it.
    leads = not inherited or inherited.leads
    admin_key = await _first_admin_key(catalog, opened.pepper) if leads else None
    await desired.refresh()
    metrics = metrics or Metrics()
    parts = _parts(stack, opened, accounting, metrics)
    if inherited:
        inherited.expose(metrics, parts.readiness)
        ops_url = inherited.ops_url
    else:
        ops_url = _ops_url(settings, _ops(stack, settings, metrics, parts.readiness))
    async with asyncio.TaskGroup() as group:
        endless = (
            fleet.run(),
            desired.run(),
            opened.tokens.run(),
            opened.blobs.run(),
            watch_loop_lag(metrics, settings.loop_lag_warn_s),
            *accounting.services(metrics),
        )
        background = [group.create_task(service) for service in endless]
        serving = group.create_task(
            http.serve(
                build_app(parts),
                parts.limits,
                keepalive_timeout_s=settings.keepalive_timeout_s,
                drain_grace_s=settings.drain_grace_s,
                opened=parts.sockets,
            )
        )
        settle_memory()
        url = f"http://{_bracketed(settings.host)}:{http.port}"
        directory = fleet.directory()
        announce(Ready(url, ops_url, directory.names, admin_key, directory.first_for("chat")))
        await until_signalled(ends_at_second=inherited is None)
        fleet.is_draining = True
        http.stop()
        await serving
        await accounting.flush()
        for task in background:
            task.cancel()


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a gateway stands on; closed by the stack it was opened with."""

    settings: Settings
    pepper: bytes
    catalog: Catalog
    fleet: Fleet
    tokens: TokenVerifier
    desired: Desired
    blobs: Blobs


async def _open(stack: AsyncExitStack, loaded: Loaded, engines: Mapping[str, Transport]) -> _Opened:
    settings = loaded.settings
    catalog = await stack.enter_async_context(open_catalog(settings))
    pepper = load_pepper(settings)
    await catalog.check_pepper(pepper)
    fleet = Fleet(
        engines=engines,
        providers={"providers": await _local(stack, settings, "providers")},
        is_remote=lambda model: backend_class(model.backend).remote,
        refresh_s=settings.worker_refresh_s,
        drain_grace_s=settings.drain_grace_s,
    )
    stack.push_async_callback(fleet.close)
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
    return _Opened(settings, pepper, catalog, fleet, tokens, desired, blobs)


def _parts(stack: AsyncExitStack, opened: _Opened, accounting: Accounting, metrics: Metrics) -> GatewayParts:
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

    return GatewayParts(
        pipeline=open_calls(
            stack, settings, fleet, desired, accounting=accounting, metrics=metrics, keep=links.keep
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
        secrets=ClientSecrets(pepper),
    )


def _known(desired: Desired, fleet: Fleet) -> Known:
    return Known(
        budgets=desired.budgets,
        book=desired.quotas,
        prices=desired.prices,
        tenants=lambda: desired.people().tenants,
        # Which model of a route a crash cut off is not written down; the likeliest one is billed.
        model_of=lambda name: fleet.directory().primary(name),
        is_current=lambda: desired.failure is None,
    )


async def _text_to_serve(catalog: Catalog, spec_text: str | None, inherited: Inherited | None) -> str | None:
    """Not the file's where its siblings follow a spec that was applied after they had started."""
    if inherited is None or inherited.spec_revision is None:
        return spec_text
    stored = await catalog.spec()
    return None if stored is not None and stored.revision > inherited.spec_revision else spec_text


async def _first_admin_key(catalog: Catalog, pepper: bytes) -> str | None:
    if any(key.role is Role.ADMIN and key.revoked_at is None for key in await catalog.keys()):
        return None
    plaintext, key = issue("first admin", Role.ADMIN, pepper)
    act = Act("gateway", "key.create", key.id, key.tenant_id, {"name": key.name, "role": key.role.value})
    await catalog.create_key(key, act)
    return plaintext


async def _local(
    stack: AsyncExitStack, settings: Settings, name: str, metrics: Metrics | None = None
) -> Transport:
    """A worker in this process; `metrics` shows its models."""
    service = make_worker(settings, name)
    if metrics is not None:
        metrics.watch_models(service.models)
    stack.push_async_callback(service.close)
    return LocalTransport(service, strict=Codec(modalities()) if settings.strict_local_transport else None)


def _token(settings: Settings) -> str | None:
    return settings.worker_token.get_secret_value() if settings.worker_token else None


def _ops(stack: AsyncExitStack, settings: Settings, metrics: Metrics, readiness: Readiness) -> OpsServer:
    ops = OpsServer(settings.metrics_host, settings.metrics_port, metrics, readiness)
    ops.start()
    stack.callback(ops.stop)
    if settings.metrics_port not in (0, ops.port):
        _log.info("metrics port %d is taken", settings.metrics_port, extra={"port": ops.port})
    return ops


def _ops_url(settings: Settings, ops: OpsServer) -> str:
    return f"http://{_bracketed(settings.metrics_host)}:{ops.port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _gateway_limits(settings: Settings) -> GatewayLimits:
    return GatewayLimits(**{name: getattr(settings, name) for name in GatewayLimits.__dataclass_fields__})
