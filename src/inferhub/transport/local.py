"""A worker in this process: called directly, or strictly, through the codec's bytes.

Assembly makes one; the gateway calls it. It never starts, drains or closes the worker by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from inferhub.core.call import Call, Chunk, Emit, Frame
from inferhub.core.errors import InferHubError
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport.base import Transport
from inferhub.transport.codec import Codec

_T = TypeVar("_T")


class LocalTransport:
    """Direct calls. With `strict`, whatever could not travel to another machine fails here already."""

    def __init__(self, worker: Transport, *, strict: Codec | None = None) -> None:
        self._worker = worker
        self._strict = strict

    async def infer(self, call: Call, emit: Emit) -> None:
        codec = self._strict
        if codec is None:
            await self._worker.infer(call, emit)
            return

        async def emit_copy(chunk: Chunk) -> None:
            reply = pb.InferReply(chunks=[codec.encode_chunk(chunk)])
            for copy in codec.decode_chunks(
                call.modality, pb.InferReply.FromString(reply.SerializeToString())
            ):
                await emit(copy)

        request = pb.InferRequest.FromString(codec.encode_call(call).SerializeToString())
        copy = codec.decode_call(request, call.traceparent)
        if call.incoming is not None:
            copy = replace(copy, incoming=_copies(call.incoming))
        await _strictly(self._worker.infer, copy, emit_copy)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        if self._strict is None:
            return await self._worker.load(spec)
        copy = nouns.decode_spec(pb.ModelSpec.FromString(nouns.encode_spec(spec).SerializeToString()))
        status = nouns.encode_model(await _strictly(self._worker.load, copy))
        return nouns.decode_model(pb.ModelStatus.FromString(status.SerializeToString()))

    async def unload(self, name: str) -> None:
        await _strictly(self._worker.unload, name)

    async def status(self) -> WorkerStatus:
        status = await self._worker.status()
        if self._strict is None:
            return status
        return nouns.decode_worker(
            pb.WorkerStatus.FromString(nouns.encode_worker(status).SerializeToString())
        )

    async def drain(self, grace_s: float) -> None:
        await self._worker.drain(grace_s)

    async def close(self) -> None:
        """Nothing to let go of: who made the worker closes it."""


async def _copies(frames: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
    async for frame in frames:
        yield wire.decode_frame(pb.Frame.FromString(wire.encode_frame(frame).SerializeToString()))


async def _strictly(method: Callable[..., Awaitable[_T]], *arguments: object) -> _T:
    try:
        return await method(*arguments)
    except InferHubError as error:
        copy = pb.Error.FromString(wire.encode_error(error).SerializeToString())
        raise wire.decode_error(copy) from error
