"""Opens the fleet of a process from the settings: who looks after its workers, and how they are reached.

Called by assembly, which says where the workers are. What has to run is handed back as services.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from inferhub.backends import backend_class
from inferhub.core.errors import ServingError, SetupError
from inferhub.core.fleet import ControlPlane, Progress
from inferhub.gateway.fleet import Fleet
from inferhub.hosting import memory_budget_bytes
from inferhub.modalities import modalities
from inferhub.orchestrator.launchers.process import ProcessLauncher
from inferhub.orchestrator.pool import PoolLimits, WorkerPool
from inferhub.orchestrator.service import Orchestrator
from inferhub.settings import Loaded, Settings
from inferhub.stores import open_fleet
from inferhub.stores.fleet.base import FleetStore
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec
from inferhub.transport.reach import Reach
from inferhub.transport.security import Credentials, tls_of

_log = logging.getLogger(__name__)

Service = Callable[[], Coroutine[Any, Any, None]]
"""Something that a process runs until it is cancelled."""
Figures = Callable[[], Mapping[str, Mapping[str, int]]]
Near = Mapping[str, Transport]
"""Workers in this process, by the name that stands for their address."""

LOCAL = "local"
PROVIDERS = "providers"
"""The one that reaches remote models: it lives beside each gateway."""

_WORKER_MODULE = "inferhub.cli._worker_process"
_INTRODUCE_EVERY_S = 0.5
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - only compared


@dataclass(frozen=True, slots=True)
class Gathered:
    """A gateway's fleet, and what has to run for it."""

    fleet: Fleet
    services: tuple[Service, ...]
    figures: Figures | None = None
    """Of the orchestrator that is part of this process."""


@dataclass(frozen=True, slots=True)
class Conducted:
    """An orchestrator that workers and gateways can reach, with the workers that it started itself."""

    plane: Orchestrator
    """Its `figures` are for metrics."""
    address: str
    services: tuple[Service, ...]
    readiness: Callable[[], Mapping[str, object]]


def gather_polled(
    stack: AsyncExitStack, settings: Settings, near: Near, addresses: Sequence[str] = ()
) -> Gathered:
    """Workers that do not register: those in this process, and those behind `addresses`."""
    reach = _reach(settings, credentials(settings), near)
    polled = (*addresses, *(address for address in near if address != PROVIDERS))
    plane = _orchestrator(stack, settings, reach, polled=polled)
    return _gathered(stack, settings, plane, reach, services=(plane.run,), expected=polled)


async def gather_registered(stack: AsyncExitStack, settings: Settings, near: Near) -> Gathered:
    """Workers that register with the orchestrators of the setting `orchestrator`. Waits for one of these:
    before it is told of a worker, a gateway has nothing to serve with. Raises `SetupError`."""
    reach = _reach(settings, credentials(settings), near)
    gathered = _gathered(stack, settings, control_client(stack, settings), reach)
    is_late = False
    while True:
        try:
            await gathered.fleet.introduce()
        except ServingError as error:
            if not is_late:
                _log.warning("waiting for an orchestrator: %s", error.message)
            is_late = True
            await asyncio.sleep(_INTRODUCE_EVERY_S)
        else:
            if is_late:
                _log.info("an orchestrator answers")
            return gathered


async def gather_launched(
    stack: AsyncExitStack, loaded: Loaded, near: Near, on_progress: Progress
) -> Gathered:
    """Workers that are processes beside this one. Returns when they are there, with nothing loaded yet."""
    # Nobody but our own processes is meant to find this door.
    shown = Credentials(token=secrets.token_urlsafe(32))
    reach = _reach(loaded.settings, shown, near)
    conducted = await conduct(stack, loaded, "127.0.0.1:0", on_progress, shown=shown, reach=reach)
    return _gathered(stack, loaded.settings, conducted.plane, reach, services=conducted.services)


async def conduct(
    stack: AsyncExitStack,
    loaded: Loaded,
    listen: str,
    on_progress: Progress,
    *,
    shown: Credentials,
    reach: Reach,
    store: FleetStore | None = None,
) -> Conducted:
    """An orchestrator that listens, and the worker processes that the settings ask for."""
    # Late: a gateway that only polls speaks to no orchestrator.
    from inferhub.transport.control_server import serve_control

    settings = loaded.settings
    plane = _orchestrator(stack, settings, reach, store=store)
    server = await serve_control(plane, listen, token=shown.token, tls=shown.tls)
    stack.push_async_callback(server.stop)
    address = _at_port(listen, server.port)
    services = [_started(stack, plane.run)]
    pool = None
    if settings.workers:
        pool = _pool(loaded, plane, address, shown)
        stack.push_async_callback(pool.close)
        await pool.start(on_progress)
        services.append(pool.run)

    def readiness() -> Mapping[str, object]:
        started = {} if pool is None else {"pool": pool.state()}
        return {"ready": True, **plane.stats(), **started}

    return Conducted(plane, address, tuple(services), readiness)


async def open_orchestrator(stack: AsyncExitStack, loaded: Loaded, on_progress: Progress) -> Conducted:
    """What `inferhub orchestrator` is."""
    settings = loaded.settings
    if settings.launcher == "none" and settings.workers:
        raise SetupError(
            "Workers are to be started, but no launcher is named: --launcher process.", param="launcher"
        )
    store = await open_fleet(settings.fleet_url)
    stack.push_async_callback(store.close)
    shown = credentials(settings)
    reach = _reach(settings, shown, {})
    stack.push_async_callback(reach.close)
    return await conduct(
        stack, loaded, settings.orchestrator_listen, on_progress, shown=shown, reach=reach, store=store
    )


def control_client(stack: AsyncExitStack, settings: Settings) -> ControlPlane:
    """The orchestrators of the setting `orchestrator`, as one."""
    from inferhub.transport.control import ControlClient

    shown = credentials(settings)
    client = ControlClient(settings.orchestrator, token=shown.token, tls=shown.tls, lease_s=settings.lease_s)
    stack.push_async_callback(client.close)
    return client


def credentials(settings: Settings) -> Credentials:
    """What this process shows to workers and orchestrators, and asks of whoever comes to it."""
    token = settings.worker_token.get_secret_value() if settings.worker_token else None
    return Credentials(token, tls_of(settings))


def _gathered(
    stack: AsyncExitStack,
    settings: Settings,
    engines: ControlPlane,
    reach: Reach,
    *,
    services: Sequence[Service] = (),
    expected: Sequence[str] = (),
) -> Gathered:
    providers = _orchestrator(stack, settings, reach, polled=(PROVIDERS,))
    fleet = Fleet(
        engines=engines,
        providers=providers,
        reach=reach,
        is_remote=lambda model: backend_class(model.backend).remote,
        expected=(*expected, PROVIDERS),
    )
    stack.push_async_callback(fleet.close)
    figures = engines.figures if isinstance(engines, Orchestrator) else None
    return Gathered(fleet, (*services, providers.run, fleet.run), figures)


def _orchestrator(
    stack: AsyncExitStack,
    settings: Settings,
    reach: Reach,
    *,
    polled: Sequence[str] = (),
    store: FleetStore | None = None,
) -> Orchestrator:
    plane = Orchestrator(
        reach=reach,
        polled=polled,
        poll_s=settings.worker_refresh_s,
        store=store,
        # Beside a gateway, whose fleet knows the providers too, that one keeps the connections.
        keep=None if polled or store is None else reach.keep,
        heartbeat_s=settings.heartbeat_interval_s,
        lease_s=settings.lease_s,
        drain_grace_s=settings.drain_grace_s,
        load_timeout_s=settings.load_timeout_s,
    )
    stack.push_async_callback(plane.close)
    return plane


def _pool(loaded: Loaded, plane: Orchestrator, address: str, shown: Credentials) -> WorkerPool:
    settings = loaded.settings
    most = settings.max_workers or settings.workers
    launcher = ProcessLauncher(
        _WORKER_MODULE,
        loaded,
        {
            "worker_listen": "127.0.0.1:0",
            "advertise": None,
            "orchestrator": [address],
            "worker_token": shown.token,
            "memory_budget_bytes": memory_budget_bytes(settings) // most,
        },
    )
    return WorkerPool(
        launcher,
        view=plane.view,
        limits=PoolLimits(settings.workers, settings.max_workers),
        prefix=_prefix(address),
        drain_grace_s=settings.drain_grace_s,
    )


def _reach(settings: Settings, shown: Credentials, near: Near) -> Reach:
    def dial(address: str) -> Transport:
        from inferhub.transport.channel import Limits
        from inferhub.transport.grpc import GrpcTransport

        limits = Limits(load_timeout_s=settings.load_timeout_s)
        return GrpcTransport(address, Codec(modalities()), token=shown.token, tls=shown.tls, limits=limits)

    return Reach(dial, fixed=near)


def _started(stack: AsyncExitStack, service: Service) -> Service:
    """Begun now, because what comes next needs it; the result follows it like any other service."""
    task = asyncio.ensure_future(service())

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    async def follow() -> None:
        await task

    stack.push_async_callback(end)
    return follow


def _prefix(address: str) -> str:
    """Of the ids of workers that are started here, unlike those of other machines and orchestrators."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()).strip("-")[:40] or "worker"
    return f"{host}-{address.rpartition(':')[2]}"


def _at_port(listen: str, port: int | None) -> str:
    """Where a process of this machine reaches what listens there."""
    host = listen.rpartition(":")[0]
    return f"{'127.0.0.1' if host in _EVERYWHERE else host}:{port}"
