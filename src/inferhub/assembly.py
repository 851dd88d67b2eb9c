"""The only file that knows what is local and what is remote: builds the services and runs them.

Called by the CLI. `serve` = gateway + worker in one process; `gateway` and `worker` are the same
classes apart, with gRPC between them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from inferhub.accounting import open_accounting
from inferhub.core.audit import Act
from inferhub.core.errors import SetupError
from inferhub.core.fleet import Progress
from inferhub.core.tenancy import Role
from inferhub.fleets import (
    LOCAL,
    PROVIDERS,
    Gathered,
    control_client,
    credentials,
    gather_launched,
    gather_polled,
    gather_registered,
    open_orchestrator,
)
from inferhub.gateway.app import build_app
from inferhub.gateway.server import HttpServer
from inferhub.gateway.turns import Turns
from inferhub.gateways import gateway_parts, known, open_gateway
from inferhub.hosting import make_worker, parse_spec
from inferhub.modalities import modalities
from inferhub.process import settle_memory, until_signalled
from inferhub.settings import Loaded, Settings
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue
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


async def serve(
    loaded: Loaded, spec_text: str | None, *, announce: Announce, on_progress: Progress = lambda _: None
) -> None:
    """Everything in one process, or the models in `workers` processes beside it; until a signal."""
    settings, metrics = loaded.settings, Metrics()
    async with AsyncExitStack() as stack:
        near = {PROVIDERS: await _local(stack, settings, PROVIDERS)}
        if settings.workers:
            gathered = await gather_launched(stack, loaded, near, on_progress)
        else:
            near[LOCAL] = await _local(stack, settings, LOCAL, metrics)
            gathered = gather_polled(stack, settings, near)
        await _serve_http(
            stack, loaded, spec_text, gathered, announce=announce, on_progress=on_progress, metrics=metrics
        )


async def gateway(
    loaded: Loaded,
    spec_text: str | None,
    *,
    announce: Announce,
    on_progress: Progress = lambda _: None,
    inherited: Inherited | None = None,
) -> None:
    """The HTTP side alone; models run on the workers that the orchestrator or the setting `worker` names."""
    settings = loaded.settings
    if bool(settings.worker) == bool(settings.orchestrator):
        raise SetupError(
            "A gateway needs to know its workers: --orchestrator HOST:PORT, which names them, or --worker "
            "HOST:PORT for each; one of the two.",
            param="orchestrator",
        )
    async with AsyncExitStack() as stack:
        near = {PROVIDERS: await _local(stack, settings, PROVIDERS)}
        if settings.orchestrator:
            gathered = await gather_registered(stack, settings, near)
        else:
            gathered = gather_polled(stack, settings, near, tuple(dict.fromkeys(settings.worker)))
        await _serve_http(
            stack,
            loaded,
            spec_text,
            gathered,
            announce=announce,
            on_progress=on_progress,
            inherited=inherited,
        )


async def worker(
    loaded: Loaded,
    spec_text: str | None,
    *,
    announce: Announce,
    on_progress: Progress = lambda _: None,
    ends_at_second: bool = True,
) -> None:
    """The gRPC side alone. An orchestrator or gateways tell it what to load; `spec_text` is loaded before."""
    from inferhub.transport import grpc_server
    from inferhub.worker.announcer import Announcer

    settings, shown = loaded.settings, credentials(loaded.settings)
    async with AsyncExitStack() as stack:
        service = make_worker(settings, settings.worker_id or f"worker-{os.getpid()}")
        stack.push_async_callback(service.close)
        server = await grpc_server.serve(
            service, settings.worker_listen, Codec(modalities()), token=shown.token, tls=shown.tls
        )
        stack.push_async_callback(server.stop, settings.drain_grace_s)
        metrics = Metrics()
        metrics.watch_models(service.models, service.tally)
        ops = _ops(
            stack,
            settings,
            metrics,
            lambda: {"ready": not service.is_draining, "draining": service.is_draining},
        )
        spec = parse_spec(loaded, spec_text) if spec_text else None
        for model in spec.models if spec else ():
            on_progress(model.name)
            await service.load(model)
        settle_memory()
        host = settings.worker_listen.rpartition(":")[0]
        service.address = settings.advertise or f"{host}:{server.port}"
        async with asyncio.TaskGroup() as group:
            announcing = None
            if settings.orchestrator:
                announcer = Announcer(control_client(stack, settings), service.status)
                service.on_change = announcer.notice
                announcing = group.create_task(announcer.run())
            names = tuple(model.name for model in spec.models) if spec else ()
            announce(Ready(f"{host}:{server.port}", _ops_url(settings, ops), names))
            await until_signalled(ends_at_second=ends_at_second)
            await service.drain(settings.drain_grace_s)
            if announcing is not None:
                announcing.cancel()


async def orchestrator(
    loaded: Loaded, _spec_text: None, *, announce: Announce, on_progress: Progress = lambda _: None
) -> None:
    """Who looks after workers, alone: it serves no calls. Gateways say what they need."""
    settings = loaded.settings
    async with AsyncExitStack() as stack:
        conducted = await open_orchestrator(stack, loaded, on_progress)
        metrics = Metrics()
        metrics.watch_fleet(conducted.plane.figures)
        ops = _ops(stack, settings, metrics, conducted.readiness)
        settle_memory()
        async with asyncio.TaskGroup() as group:
            services = [group.create_task(service()) for service in conducted.services]
            announce(Ready(conducted.address, _ops_url(settings, ops), ()))
            await until_signalled()
            for service in services:
                service.cancel()


async def _serve_http(
    stack: AsyncExitStack,
    loaded: Loaded,
    spec_text: str | None,
    gathered: Gathered,
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
    opened = await open_gateway(stack, loaded, gathered.fleet)
    fleet, desired, catalog = opened.fleet, opened.desired, opened.catalog
    await desired.start(await _text_to_serve(catalog, spec_text, inherited), on_progress)
    accounting = await stack.enter_async_context(
        open_accounting(settings, opened.pepper, known(desired, fleet))
    )
    if inherited:
        await inherited.prepared(desired.spec.revision)
    # Not earlier: a start that fails on the way would take the key, which nobody saw, with it.
    leads = not inherited or inherited.leads
    admin_key = await _first_admin_key(catalog, opened.pepper) if leads else None
    await desired.refresh()
    metrics = metrics or Metrics()
    if gathered.figures is not None:
        metrics.watch_fleet(gathered.figures)
    parts = gateway_parts(stack, opened, accounting, metrics)
    if inherited:
        inherited.expose(metrics, parts.readiness)
        ops_url = inherited.ops_url
    else:
        ops_url = _ops_url(settings, _ops(stack, settings, metrics, parts.readiness))
    async with asyncio.TaskGroup() as group:
        endless = (
            *(service() for service in gathered.services),
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
        metrics.watch_models(service.models, service.tally)
    stack.push_async_callback(service.close)
    return LocalTransport(service, strict=Codec(modalities()) if settings.strict_local_transport else None)


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
