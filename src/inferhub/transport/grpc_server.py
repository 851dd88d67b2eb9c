"""The worker's side of gRPC: a servicer over any `Transport`, with the standard health service.

The `worker` command and each child process serve with it. It decides nothing about calls: it decodes,
hands over, coalesces what comes back, and turns every failure into an error message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import grpc.aio

from inferhub.core.call import Chunk, Frame
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport._pb import worker_pb2_grpc as pb_grpc
from inferhub.transport.base import Transport
from inferhub.transport.channel import DEFAULT_LIMITS, Limits, Option
from inferhub.transport.coalesce import Coalescer
from inferhub.transport.codec import Codec
from inferhub.transport.listening import Listening, failure, open_server, replied
from inferhub.transport.security import Credentials, Tls

_SERVICE = pb.DESCRIPTOR.services_by_name["Worker"].full_name


async def serve(
    worker: Transport,
    listen: str,
    codec: Codec,
    *,
    token: str | None = None,
    tls: Tls | None = None,
    limits: Limits = DEFAULT_LIMITS,
    options: tuple[Option, ...] = (),
) -> WorkerServer:
    """Serve `worker` at `HOST:PORT` (port 0 picks one) or `unix:PATH`. Raises `PortTaken`, `SetupError`.

    With `token`, callers must send it as a bearer token; health checks need none. With `tls`, everybody must
    show a certificate. `options` are gRPC's own.
    """

    def add_to(server: grpc.aio.Server, health: Any) -> None:
        servicer = _Servicer(worker, codec, limits, health)
        cast("Any", pb_grpc.add_WorkerServicer_to_server)(servicer, server)

    listening = await open_server(
        listen, _SERVICE, add_to, credentials=Credentials(token, tls), limits=limits, options=options
    )
    return WorkerServer(listening, worker)


class WorkerServer:
    """A listening worker."""

    def __init__(self, listening: Listening, worker: Transport) -> None:
        self.port = listening.port
        """None on a unix socket."""
        self._listening = listening
        self._worker = worker

    async def stop(self, grace_s: float) -> None:
        """Say NOT_SERVING, drain the worker, then hang up. The worker stays loaded."""
        await self._listening.health.enter_graceful_shutdown()
        await self._worker.drain(grace_s)
        # What drain cut off still has its last message on the way.
        await self._listening.server.stop(1.0)

    async def wait(self) -> None:
        await self._listening.server.wait_for_termination()


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

    async def InferMany(self, many: pb.InferManyRequest, context: Any) -> pb.InferManyReply:  # noqa: N802
        replies = await asyncio.gather(*(self._whole(request) for request in many.requests))
        return pb.InferManyReply(replies=replies)

    async def _whole(self, request: pb.InferRequest) -> pb.InferReply:
        chunks: list[pb.Chunk] = []

        async def keep(chunk: Chunk) -> None:
            chunks.append(self._codec.encode_chunk(chunk))

        try:
            await self._worker.infer(self._codec.decode_call(request, None), keep)
        except Exception as error:
            return pb.InferReply(error=failure(error, f"call {request.call_id}"))
        return pb.InferReply(chunks=chunks)

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
                await answer.flush(failure(error, f"call {request.call_id}"))
        finally:
            await answer.close()

    async def Load(self, request: pb.LoadRequest, context: Any) -> pb.LoadReply:  # noqa: N802
        async def load() -> pb.LoadReply:
            status = await self._worker.load(nouns.decode_spec(request.spec))
            return pb.LoadReply(model=nouns.encode_model(status))

        return await replied(load, pb.LoadReply)

    async def Unload(self, request: pb.UnloadRequest, context: Any) -> pb.UnloadReply:  # noqa: N802
        async def unload() -> pb.UnloadReply:
            await self._worker.unload(request.name)
            return pb.UnloadReply()

        return await replied(unload, pb.UnloadReply)

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainReply:  # noqa: N802
        async def drain() -> pb.DrainReply:
            await self._status.enter_graceful_shutdown()
            await self._worker.drain(request.grace_s)
            return pb.DrainReply()

        return await replied(drain, pb.DrainReply)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802
        async def status() -> pb.StatusReply:
            return pb.StatusReply(worker=nouns.encode_worker(await self._worker.status()))

        return await replied(status, pb.StatusReply)


async def _frames(said: AsyncIterator[pb.Utterance]) -> AsyncIterator[Frame]:
    async for utterance in said:
        yield wire.decode_frame(utterance.frame)


def _traceparent(context: Any) -> str | None:
    return next((value for key, value in context.invocation_metadata() or () if key == "traceparent"), None)
