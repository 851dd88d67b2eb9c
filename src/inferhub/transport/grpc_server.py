"""The worker's side of gRPC: a servicer over any `Transport`, with the standard health service.

The `worker` command and each child process serve with it. It decides nothing about calls: it decodes,
hands over, coalesces what comes back, and turns every failure into an error message.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferhub.core.call import Frame
from inferhub.core.errors import InferHubError, InternalError, PortTaken, SetupError
from inferhub.telemetry.ports import holder
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport._pb import worker_pb2_grpc as pb_grpc
from inferhub.transport.base import Transport
from inferhub.transport.coalesce import Coalescer
from inferhub.transport.codec import Codec
from inferhub.transport.grpc import DEFAULT_LIMITS, Limits, shared_options

_log = logging.getLogger(__name__)
_SERVICE = pb.DESCRIPTOR.services_by_name["Worker"].full_name
_Reply = TypeVar("_Reply")


async def serve(
    worker: Transport, listen: str, codec: Codec, *, token: str | None = None, limits: Limits = DEFAULT_LIMITS
) -> WorkerServer:
    """Serve `worker` at `HOST:PORT` (port 0 picks one) or `unix:PATH`. Raises `PortTaken`, `SetupError`.

    With `token`, callers must send it as a bearer token; health checks need none.
    """
    await _check_free(listen)
    server = grpc.aio.server(
        interceptors=[_JoinToken(token)] if token else [],
        options=[
            *shared_options(limits),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            # By default two servers share one port and each gets half of the calls.
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=limits.max_calls,
    )
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    servicer = _Servicer(worker, codec, limits, status)
    cast("Any", pb_grpc.add_WorkerServicer_to_server)(servicer, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise PortTaken(f"Cannot listen on {listen}: {error}") from error
    await server.start()
    for name in ("", _SERVICE):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    return WorkerServer(server, worker, status, None if listen.startswith("unix:") else port)


class WorkerServer:
    """A listening worker."""

    def __init__(self, server: grpc.aio.Server, worker: Transport, status: Any, port: int | None) -> None:
        self.port = port
        """None on a unix socket."""
        self._server = server
        self._worker = worker
        self._status = status

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, drain the worker, then hang up. The worker stays loaded."""
        await self._status.enter_graceful_shutdown()
        await self._worker.drain(grace_s)
        # What drain cut off still has its last message on the way.
        await self._server.stop(1.0)

    async def wait(self) -> None:
        await self._server.wait_for_termination()


class _Servicer(pb_grpc.WorkerServicer):
    def __init__(self, worker: Transport, codec: Codec, limits: Limits, status: Any) -> None:
        self._worker = worker
        self._codec = codec
        self._limits = limits
        self._status = status

    async def Infer(self, request: pb.InferRequest, context: Any) -> None:  # noqa: N802
        await self._answer(request, None, context)

    async def Converse(self, said: AsyncIterator[pb.Utterance], context: Any) -> None:  # noqa: N802
        first = await anext(said, pb.Utterance())
        await self._answer(first.request, _frames(said), context)
        # The client ends it, once it has read the answer: were we the first, its next frame would fail, and
        # gRPC forgets what it has not read then.
        async for _ in said:
            pass

    async def _answer(
        self, request: pb.InferRequest, incoming: AsyncIterator[Frame] | None, context: Any
    ) -> None:
        answer = Coalescer(
            context.write,
            self._codec.encode_chunk,
            is_stream=request.stream,
            max_message_bytes=self._limits.max_message_bytes,
        )
        try:
            call = self._codec.decode_call(request, _traceparent(context))
            if incoming is not None:
                call = replace(call, incoming=incoming)
            await self._worker.infer(call, answer.emit)
        except Exception as error:
            if not answer.is_broken:
                await answer.flush(_ours(error, f"call {request.call_id}"))
        finally:
            await answer.close()

    async def Load(self, request: pb.LoadRequest, context: Any) -> pb.LoadReply:  # noqa: N802
        async def load() -> pb.LoadReply:
            status = await self._worker.load(nouns.decode_spec(request.spec))
            return pb.LoadReply(model=nouns.encode_model(status))

        return await _replied(load, pb.LoadReply)

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadReply:  # noqa: N802
        async def unload() -> pb.UnloadReply:
            await self._worker.unload(request.name)
            return pb.UnloadReply()

        return await _replied(unload, pb.UnloadReply)

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:  # noqa: N802
        async def drain() -> pb.DrainReply:
            await self._status.enter_graceful_shutdown()
            await self._worker.drain(request.grace_s)
            return pb.DrainReply()

        return await _replied(drain, pb.DrainReply)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802
        async def status() -> pb.StatusReply:
            return pb.StatusReply(worker=nouns.encode_worker(await self._worker.status()))

        return await _replied(status, pb.StatusReply)


async def _frames(said: AsyncIterator[pb.Utterance]) -> AsyncIterator[Frame]:
    async for utterance in said:
        yield wire.decode_frame(utterance.frame)


async def _replied(act: Callable[[], Awaitable[_Reply]], reply: Callable[..., _Reply]) -> _Reply:
    try:
        return await act()
    except Exception as error:
        return reply(error=wire.encode_error(_ours(error, act.__name__)))


def _ours(error: Exception, what: str) -> InferHubError:
    """No traceback and no foreign text reaches the peer."""
    if isinstance(error, InferHubError):
        return error
    _log.error("Unexpected failure in %s", what, exc_info=error)
    return InternalError()


def _traceparent(context: Any) -> str | None:
    return next((value for key, value in context.invocation_metadata() or () if key == "traceparent"), None)


class _JoinToken(grpc.aio.ServerInterceptor):
    """Refuses every call to the worker that does not carry the token."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "join token missing or wrong")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        given = dict(details.invocation_metadata or ()).get("authorization", "")
        is_allowed = hmac.compare_digest(str(given).encode(), self._expected)
        if is_allowed or not details.method.startswith(f"/{_SERVICE}/"):
            return await continuation(details)
        return self._refusal


async def _check_free(listen: str) -> None:
    """gRPC binds what it can of a name's addresses and takes over a socket file: look first."""
    if listen.startswith("unix:"):
        await _check_free_path(listen.removeprefix("unix:"))
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise SetupError(f"{listen!r} is not HOST:PORT or unix:PATH.", param="listen")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            socket.create_server(cast("Any", address), family=family).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or "in use" not in str(error):
            raise SetupError(f"Cannot listen on {listen}: {error}", param="listen") from error
        raise PortTaken(f"{listen} is taken by {holder(int(port))}; choose another port.") from error


async def _check_free_path(path: str) -> None:
    if not Path(path).parent.is_dir() or len(path.encode()) > 107:
        raise SetupError(
            f"{path!r} is not a possible socket: no such folder, or over 107 bytes.", param="listen"
        )
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return  # Nobody answers there: a new path, or the remains of a process that is gone.
    writer.close()
    raise PortTaken(f"Another process already listens on {path}.")
