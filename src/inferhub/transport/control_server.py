"""An orchestrator's side of gRPC: a servicer over any `ControlPlane`.

The `orchestrator` command serves with it. It decides nothing about the fleet: it decodes, hands over, and
sends each gateway what changed since the view that it sent before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import grpc.aio

from inferhub.core.errors import Overloaded, SetupError
from inferhub.core.fleet import ControlPlane, FleetView
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import orchestrator_pb2 as pb
from inferhub.transport._pb import orchestrator_pb2_grpc as pb_grpc
from inferhub.transport.channel import DEFAULT_LIMITS, Limits
from inferhub.transport.codec_views import encode_step
from inferhub.transport.listening import Listening, failure, open_server, replied
from inferhub.transport.security import Credentials, Tls

_log = logging.getLogger(__name__)
_SERVICE = pb.DESCRIPTOR.services_by_name["Orchestrator"].full_name

PROTOCOL = 1
"""Major version of orchestrator.proto; a worker with another one is refused."""

MAX_CONTROL_BYTES = 4 * 1024 * 1024
"""Of one message from a worker or a gateway: a worker with a thousand models needs a quarter of it."""


async def serve_control(
    plane: ControlPlane,
    listen: str,
    *,
    token: str | None = None,
    tls: Tls | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ControlServer:
    """Serve `plane` at `HOST:PORT` (port 0 picks one). Raises `PortTaken`, `SetupError`."""
    servicer = _Servicer(plane, limits)

    def add_to(server: grpc.aio.Server, health: Any) -> None:
        cast("Any", pb_grpc.add_OrchestratorServicer_to_server)(servicer, server)

    listening = await open_server(
        listen,
        _SERVICE,
        add_to,
        credentials=Credentials(token, tls),
        limits=limits,
        options=(("grpc.max_receive_message_length", MAX_CONTROL_BYTES),),
    )
    return ControlServer(listening)


class ControlServer:
    """A listening orchestrator."""

    def __init__(self, listening: Listening) -> None:
        self.port = listening.port
        """None on a unix socket."""
        self._listening = listening

    async def stop(self, grace_s: float = 0.0) -> None:
        """Say NOT_SERVING, then hang up; workers and gateways turn to the next orchestrator or wait."""
        await self._listening.stop(grace_s)

    async def wait(self) -> None:
        await self._listening.server.wait_for_termination()


class _Servicer(pb_grpc.OrchestratorServicer):
    def __init__(self, plane: ControlPlane, limits: Limits) -> None:
        self._plane = plane
        self._limits = limits
        self._watchers = 0
        self._tick_s = limits.silence_s / 3

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterReply:  # noqa: N802
        async def register() -> pb.RegisterReply:
            if request.protocol != PROTOCOL:
                # Whatever the rest says, it may mean something else there.
                _log.warning("Refused a worker at %s: it speaks another protocol", context.peer())
                raise SetupError(
                    f"This orchestrator speaks version {PROTOCOL} of the protocol, the worker version "
                    f"{request.protocol}; use the same release."
                )
            lease = await self._plane.register(nouns.decode_worker(request.worker))
            return pb.RegisterReply(heartbeat_s=lease.heartbeat_s, lease_s=lease.lease_s)

        return await replied(register, pb.RegisterReply)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatReply:  # noqa: N802
        async def heartbeat() -> pb.HeartbeatReply:
            await self._plane.heartbeat(nouns.decode_beat(request.beat))
            return pb.HeartbeatReply()

        return await replied(heartbeat, pb.HeartbeatReply)

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveReply:  # noqa: N802
        async def leave() -> pb.LeaveReply:
            await self._plane.leave(request.id, request.incarnation)
            return pb.LeaveReply()

        return await replied(leave, pb.LeaveReply)

    async def Want(self, request: pb.WantRequest, context: Any) -> None:  # noqa: N802
        loading: asyncio.Queue[str | None] = asyncio.Queue()
        wanted = asyncio.ensure_future(self._want(request, loading.put_nowait))
        wanted.add_done_callback(lambda _: loading.put_nowait(None))
        try:
            while True:
                try:
                    async with asyncio.timeout(self._tick_s):
                        name = await loading.get()
                except TimeoutError:
                    name = ""  # A sign of life.
                if name is None:
                    break
                await context.write(pb.WantReply(loading=name))
            if (reply := await wanted).HasField("error"):
                await context.write(reply)
        finally:
            wanted.cancel()
            await asyncio.wait([wanted])

    async def _want(self, request: pb.WantRequest, on_progress: Any) -> pb.WantReply:
        async def want() -> pb.WantReply:
            deployments = nouns.decode_deployments(request.deployments)
            await self._plane.want(request.holder, deployments, on_progress)
            return pb.WantReply()

        return await replied(want, pb.WantReply)

    async def Watch(self, request: pb.WatchRequest, context: Any) -> None:  # noqa: N802
        if self._watchers >= self._limits.max_watchers:
            full = Overloaded("This orchestrator has as many watchers as it may have.", retry_after_s=1.0)
            await context.write(pb.WatchReply(error=failure(full, "watch")))
            return
        self._watchers += 1
        try:
            async with aclosing(self._plane.watch(request.holder)) as views:
                await self._send(views, context)
        except TimeoutError:
            _log.warning("%s follows the fleet but does not read; hung up", context.peer())
        except Exception as error:
            await context.write(pb.WatchReply(error=failure(error, "watch")))
        finally:
            self._watchers -= 1

    async def _send(self, views: AsyncIterator[FleetView], context: Any) -> None:
        """Each view as a step from the one before; a step without content where nothing happens, as a sign of
        life. While a watcher does not read, nothing piles up: the next view is asked for after the write."""
        sent: FleetView | None = None
        upcoming = asyncio.ensure_future(anext(views, None))
        try:
            while True:
                done, _ = await asyncio.wait([upcoming], timeout=self._tick_s)
                view = upcoming.result() if done else sent
                if view is None and done:
                    return
                if view is not None:
                    await self._write(encode_step(sent, view), context)
                sent = view
                if done:
                    upcoming = asyncio.ensure_future(anext(views, None))
        finally:
            # The generator is closed by our caller, so nobody may be inside it any more.
            upcoming.cancel()
            await asyncio.wait([upcoming])

    async def _write(self, step: pb.WatchReply, context: Any) -> None:
        async with asyncio.timeout(self._limits.silence_s):
            await context.write(step)
