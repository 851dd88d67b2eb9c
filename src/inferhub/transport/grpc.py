"""A worker reached by gRPC: the gateway's client here, the worker's server in `grpc_server`.

Assembly makes one per worker, the worker one per child process. It decides nothing and tries nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from inferhub.core.call import Call, Chunk, Emit, Finished, Frame
from inferhub.core.errors import (
    DeadlineExceeded,
    EndpointLost,
    InferHubError,
    NoEndpoint,
    UpstreamFailed,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport._pb.worker_pb2_grpc import WorkerStub
from inferhub.transport.channel import DEFAULT_LIMITS, Limits, Line, begin, translated
from inferhub.transport.codec import Codec
from inferhub.transport.security import Credentials, Tls

# The worker enforces the deadline too and knows better where the time went: let its answer arrive first.
DEADLINE_SLACK_S = 0.25


class GrpcTransport:
    """A client of one worker. Make it inside the event loop that will use it."""

    def __init__(
        self,
        target: str,
        codec: Codec,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.target = target
        self._codec = codec
        self._limits = limits
        self._line = Line(target, cast("Any", WorkerStub), Credentials(token, tls), limits)

    async def infer(self, call: Call, emit: Emit) -> None:
        remaining_s = call.deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("The call's time was over before it reached a worker.")
        rpc = self._open(call, remaining_s + DEADLINE_SLACK_S)
        try:
            await self._relay(rpc, call, emit)
        finally:
            # Without this, an `emit` that fails would leave the engine working for nobody.
            rpc.cancel()

    async def infer_many(self, calls: Sequence[Call]) -> list[list[Chunk] | InferHubError]:
        """Whole answers in the order of the calls, each as `infer` would give it, for a fraction of the cost.

        For calls that are computed together and not streamed. Cancelling the task ends all of them."""
        timeout_s = max(call.deadline_s for call in calls) - time.monotonic() + DEADLINE_SLACK_S
        request = pb.InferManyRequest(requests=[self._codec.encode_call(call) for call in calls])
        rpc = begin(
            self._line.stub.InferMany, request, "The worker", timeout=timeout_s, metadata=self._line.metadata
        )
        reply = await translated(rpc, "The worker", NoEndpoint)
        if len(reply.replies) != len(calls):
            raise UpstreamFailed(f"The worker gave {len(reply.replies)} answers to {len(calls)} calls.")
        return [self._whole(call, one) for call, one in zip(calls, reply.replies, strict=True)]

    async def load(self, spec: ModelSpec) -> ModelStatus:
        request = pb.LoadRequest(spec=nouns.encode_spec(spec))
        reply = await self._ask(self._line.stub.Load, request, self._limits.load_timeout_s)
        return nouns.decode_model(reply.model)

    async def unload(self, name: str) -> None:
        await self._ask(self._line.stub.Unload, pb.UnloadRequest(name=name), self._limits.unload_timeout_s)

    async def status(self) -> WorkerStatus:
        reply = await self._ask(self._line.stub.Status, pb.StatusRequest(), self._limits.status_timeout_s)
        return nouns.decode_worker(reply.worker)

    async def drain(self, grace_s: float) -> None:
        timeout_s = grace_s + self._limits.unload_timeout_s
        await self._ask(self._line.stub.Drain, pb.DrainRequest(grace_s=grace_s), timeout_s)

    async def close(self) -> None:
        """Hang up; calls in flight end as `EndpointLost`. The worker lives on."""
        await self._line.close()

    def _open(self, call: Call, timeout_s: float) -> Any:
        request = self._codec.encode_call(call)
        metadata, traceparent = self._line.metadata, call.traceparent
        # gRPC refuses the whole call over a header that is not plain ASCII.
        if traceparent and traceparent.isascii() and traceparent.isprintable():
            metadata = (*metadata, ("traceparent", traceparent))
        how = {"timeout": timeout_s, "metadata": metadata}
        if call.incoming is not None:
            said = _utterances(request, call.incoming)
            return begin(self._line.stub.Converse, said, "The worker", **how)
        return begin(self._line.stub.Infer, request, "The worker", **how)

    async def _relay(self, rpc: AsyncIterator[pb.InferReply], call: Call, emit: Emit) -> None:
        is_finished = False
        # Not `rpc.read()`: it forgets messages that arrived before the status of a failed call.
        async with aclosing(cast("Any", aiter(rpc))) as replies:
            while (reply := await translated(anext(replies, None), "The worker", NoEndpoint)) is not None:
                for chunk in self._codec.decode_chunks(call.modality, reply):
                    await emit(chunk)
                    is_finished = isinstance(chunk, Finished)
                if reply.HasField("error"):
                    raise wire.decode_error(reply.error)
                if is_finished and call.incoming is not None:
                    return  # The worker waits for our end.
        if not is_finished:
            raise EndpointLost("The worker stopped before the end of the answer.")

    def _whole(self, call: Call, reply: pb.InferReply) -> list[Chunk] | InferHubError:
        try:
            chunks = list(self._codec.decode_chunks(call.modality, reply))
        except InferHubError as error:
            return error
        if reply.HasField("error"):
            return wire.decode_error(reply.error)
        if not chunks or not isinstance(chunks[-1], Finished):
            return EndpointLost("The worker stopped before the end of the answer.")
        return chunks

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        where = f"The worker at {self.target}"
        asked = begin(method, request, where, timeout=timeout_s, metadata=self._line.metadata)
        reply = await translated(asked, where)
        if reply.HasField("error"):
            raise wire.decode_error(reply.error)
        return reply


async def _utterances(request: pb.InferRequest, frames: AsyncIterator[Frame]) -> AsyncIterator[pb.Utterance]:
    """Pulled by gRPC as fast as the worker takes them: that is the back-pressure."""
    yield pb.Utterance(request=request)
    async for frame in frames:
        yield pb.Utterance(frame=wire.encode_frame(frame))
