"""The only file that knows what is local and what is remote: builds the services and runs them.

Called by the CLI. `serve` = gateway + worker in one process; `gateway` and `worker` are the same
classes apart, with gRPC between them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from inferhub.backends import backend_class
from inferhub.backends.base import check_options
from inferhub.core.errors import SetupError
from inferhub.core.models import ModelSpec
from inferhub.core.tenancy import Role
from inferhub.gateway.app import GatewayParts, build_app
from inferhub.gateway.desired import Desired
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.server import HttpServer
from inferhub.modalities import modalities
from inferhub.pipeline import PipelineLimits, build_pipeline
from inferhub.registry.weights import Weights
from inferhub.settings import Loaded, Settings
from inferhub.settings.spec import load_spec
from inferhub.stores import open_catalog as open_catalog_url
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue
from inferhub.stores.catalog.pepper import load_pepper
from inferhub.telemetry.loop_lag import watch_loop_lag
from inferhub.telemetry.metrics import Metrics
from inferhub.telemetry.ops import OpsServer
from inferhub.telemetry.resources import devices
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec
from inferhub.transport.local import LocalTransport
from inferhub.worker.host import Host
from inferhub.worker.service import Worker

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


def check_model(spec: ModelSpec) -> None:
    """Raises `SetupError` for an unknown backend, option, or missing weights name."""
    backend = backend_class(spec.backend)
    check_options(backend, spec)
    if backend.needs_weights and spec.weights is None:
        raise SetupError(f"Model {spec.name!r}: backend {spec.backend!r} needs 'weights'.", param="weights")


def open_weights(settings: Settings) -> Weights:
    return Weights(settings.cache_dir, settings.weights_mirror)


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
    async with AsyncExitStack() as stack:
        engines = {"local": await _local(stack, loaded.settings, "local")}
        await _serve_http(stack, loaded, spec_text, engines, announce=announce, on_progress=on_progress)


async def gateway(
    loaded: Loaded, spec_text: str | None, *, announce: Announce, on_progress: Progress = lambda _: None
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
        await _serve_http(stack, loaded, spec_text, engines, announce=announce, on_progress=on_progress)


async def worker(
    loaded: Loaded, spec_text: str | None, *, announce: Announce, on_progress: Progress = lambda _: None
) -> None:
    """The gRPC side alone. Gateways tell it what to load; `spec_text` is loaded before they come."""
    from inferhub.transport import grpc_server

    settings = loaded.settings
    async with AsyncExitStack() as stack:
        service = _worker(settings, settings.worker_id or f"worker-{os.getpid()}")
        stack.push_async_callback(service.close)
        server = await grpc_server.serve(
            service, settings.worker_listen, Codec(modalities()), token=_token(settings)
        )
        stack.push_async_callback(server.stop, settings.drain_grace_s)
        ops = _ops(stack, settings, Metrics(), lambda: {"ready": True})
        spec = load_spec(spec_text, env=loaded.environment, check_model=check_model) if spec_text else None
        for model in spec.models if spec else ():
            on_progress(model.name)
            await service.load(model)
        _settle_memory()
        host = settings.worker_listen.rpartition(":")[0]
        names = tuple(model.name for model in spec.models) if spec else ()
        announce(Ready(f"{host}:{server.port}", _ops_url(settings, ops), names))
        await _until_signalled()
        await service.drain(settings.drain_grace_s)


async def _serve_http(
    stack: AsyncExitStack,
    loaded: Loaded,
    spec_text: str | None,
    engines: Mapping[str, Transport],
    *,
    announce: Announce,
    on_progress: Progress,
) -> None:
    """What `serve` and `gateway` share: everything in front of the workers."""
    settings = loaded.settings
    http = HttpServer(settings.host, settings.port)
    stack.callback(http.stop)
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
    desired = Desired(
        catalog,
        fleet,
        pepper=pepper,
        parse=lambda text: load_spec(text, env=loaded.environment, check_model=check_model),
        refresh_s=settings.key_refresh_s,
    )
    await desired.start(spec_text, on_progress)
    # Not earlier: a start that fails on the way would take the key, which nobody saw, with it.
    admin_key = await _first_admin_key(catalog, pepper)
    await desired.refresh()
    metrics = Metrics()
    app = build_app(
        GatewayParts(
            pipeline=build_pipeline(fleet.directory, metrics, _pipeline_limits(settings)),
            fleet=fleet,
            desired=desired,
            metrics=metrics,
            limits=_gateway_limits(settings),
            cors_origins=settings.cors_origins,
        )
    )
    ops = _ops(stack, settings, metrics, fleet.readiness)
    async with asyncio.TaskGroup() as group:
        endless = (fleet.run(), desired.run(), watch_loop_lag(metrics, settings.loop_lag_warn_s))
        background = [group.create_task(service) for service in endless]
        serving = group.create_task(
            http.serve(
                app,
                _gateway_limits(settings),
                keepalive_timeout_s=settings.keepalive_timeout_s,
                drain_grace_s=settings.drain_grace_s,
            )
        )
        _settle_memory()
        url = f"http://{_bracketed(settings.host)}:{http.port}"
        directory = fleet.directory()
        announce(Ready(url, _ops_url(settings, ops), directory.names, admin_key, directory.first_for("chat")))
        await _until_signalled()
        fleet.is_draining = True
        http.stop()
        await serving
        for task in background:
            task.cancel()


def _settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight, and let it run less often.

    Modules, schemas and models live as long as the process; walking them again and again took a quarter
    of a busy gateway's CPU and stopped the loop for a tenth of a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


async def _first_admin_key(catalog: Catalog, pepper: bytes) -> str | None:
    if any(key.role is Role.ADMIN and key.revoked_at is None for key in await catalog.keys()):
        return None
    plaintext, key = issue("first admin", Role.ADMIN, pepper)
    await catalog.create_key(key)
    return plaintext


async def _local(stack: AsyncExitStack, settings: Settings, name: str) -> Transport:
    service = _worker(settings, name)
    stack.push_async_callback(service.close)
    return LocalTransport(service, strict=Codec(modalities()) if settings.strict_local_transport else None)


def _worker(settings: Settings, name: str) -> Worker:
    return Worker(name, Host(resolve=open_weights(settings).resolve), devices)


def _token(settings: Settings) -> str | None:
    return settings.worker_token.get_secret_value() if settings.worker_token else None


def _ops(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics, readiness: Callable[[], Mapping[str, object]]
) -> OpsServer:
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


def _pipeline_limits(settings: Settings) -> PipelineLimits:
    return PipelineLimits(**{name: getattr(settings, name) for name in PipelineLimits.__dataclass_fields__})


async def _until_signalled() -> None:
    """Returns at the first SIGINT or SIGTERM; a second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopped.is_set():
            os._exit(130)
        stopped.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    await stopped.wait()


def run(service: Coroutine[Any, Any, None]) -> None:
    """Run one of the services above on uvloop, from a synchronous caller."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(service)
