"""A worker reached by gRPC: the gateway's client here, the worker's server in `grpc_server`.

Assembly makes one per worker, the worker one per child process. This is the one border at which
gRPC's exceptions become ours, while a call is made and while its answer is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio

from inferhub.core.call import Call, Emit, Finished, Frame
from inferhub.core.errors import (
    DeadlineExceeded,
    EndpointLost,
    InferHubError,
    NoEndpoint,
    Overloaded,
    SetupError,
    TooLarge,
    UpstreamFailed,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import WorkerStatus
from inferhub.transport import codec as wire
from inferhub.transport import codec_models as nouns
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport._pb.worker_pb2_grpc import WorkerStub
from inferhub.transport.codec import Codec

# The worker enforces the deadline too and knows better where the time went: let its answer arrive first.
DEADLINE_SLACK_S = 0.25

Option = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost; the same on both sides."""

    max_message_bytes: int = 64 * 1024 * 1024
    max_calls: int = 4096
    """RPCs that one server answers at a time."""
    status_timeout_s: float = 5.0
    load_timeout_s: float = 1800.0
    unload_timeout_s: float = 60.0


DEFAULT_LIMITS = Limits()


def shared_options(limits: Limits) -> list[Option]:
    """Both sides take the same keepalive: a server that expects fewer pings hangs up (`too_many_pings`)."""
    return [
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


class GrpcTransport:
    """A client of one worker. Make it inside the event loop that will use it."""

    def __init__(
        self, target: str, codec: Codec, *, token: str | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        asyncio.get_running_loop()  # gRPC would silently bind the channel to a loop that never runs.
        self.target = target
        self._codec = codec
        self._limits = limits
        self._authorization = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.aio.insecure_channel(
            target,
            options=[
                *shared_options(limits),
                # Retries belong to the pipeline, and a worker is a neighbour, not behind a web proxy.
                ("grpc.enable_retries", 0),
                ("grpc.enable_http_proxy", 0),
                # A worker that comes back is found soon, and one client's back-off is not another's.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1_000),
                ("grpc.max_reconnect_backoff_ms", 2_000),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub: Any = cast("Any", WorkerStub)(self._channel)

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

    async def load(self, spec: ModelSpec) -> ModelStatus:
        request = pb.LoadRequest(spec=nouns.encode_spec(spec))
        reply = await self._ask(self._stub.Load, request, self._limits.load_timeout_s)
        return nouns.decode_model(reply.model)

    async def unload(self, name: str) -> None:
        await self._ask(self._stub.Unload, pb.UnloadRequest(name=name), self._limits.unload_timeout_s)

    async def status(self) -> WorkerStatus:
        reply = await self._ask(self._stub.Status, pb.StatusRequest(), self._limits.status_timeout_s)
        return nouns.decode_worker(reply.worker)

    async def drain(self, grace_s: float) -> None:
        timeout_s = grace_s + self._limits.unload_timeout_s
        await self._ask(self._stub.Drain, pb.DrainRequest(grace_s=grace_s), timeout_s)

    async def close(self) -> None:
        """Hang up; calls in flight end as `EndpointLost`. The worker lives on."""
        await self._channel.close()

    def _open(self, call: Call, timeout_s: float) -> Any:
        request = self._codec.encode_call(call)
        metadata, traceparent = self._authorization, call.traceparent
        # gRPC refuses the whole call over a header that is not plain ASCII.
        if traceparent and traceparent.isascii() and traceparent.isprintable():
            metadata = (*metadata, ("traceparent", traceparent))
        try:
            if call.incoming is not None:
                said = _utterances(request, call.incoming)
                return self._stub.Converse(said, timeout=timeout_s, metadata=metadata)
            return self._stub.Infer(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.UsageError as error:
            raise EndpointLost("The connection to the worker is closed.") from error

    async def _relay(self, rpc: AsyncIterator[pb.InferReply], call: Call, emit: Emit) -> None:
        is_finished = False
        # Not `rpc.read()`: it forgets messages that arrived before the status of a failed call.
        async with aclosing(cast("Any", aiter(rpc))) as replies:
            while (reply := await _translated(anext(replies, None), "The worker", NoEndpoint)) is not None:
                for chunk in self._codec.decode_chunks(call.modality, reply):
                    await emit(chunk)
                    is_finished = isinstance(chunk, Finished)
                if reply.HasField("error"):
                    raise wire.decode_error(reply.error)
                if is_finished and call.incoming is not None:
                    return  # The worker waits for our end.
        if not is_finished:
            raise EndpointLost("The worker stopped before the end of the answer.")

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        where = f"The worker at {self.target}"
        try:
            asked = method(request, timeout=timeout_s, metadata=self._authorization)
        except grpc.aio.UsageError as error:
            raise EndpointLost(f"The connection to {where} is closed.") from error
        reply = await _translated(asked, where)
        if reply.HasField("error"):
            raise wire.decode_error(reply.error)
        return reply


async def _utterances(request: pb.InferRequest, frames: AsyncIterator[Frame]) -> AsyncIterator[pb.Utterance]:
    """Pulled by gRPC as fast as the worker takes them: that is the back-pressure."""
    yield pb.Utterance(request=request)
    async for frame in frames:
        yield pb.Utterance(frame=wire.encode_frame(frame))


async def _translated(asked: Awaitable[Any], where: str, refused: type[InferHubError] = SetupError) -> Any:
    """Await gRPC and let nothing foreign through. A client cannot mend a set-up, so calls pass `refused`."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        return await asked
    except grpc.aio.AioRpcError as error:
        raise _ours(error, where, refused) from error
    except asyncio.CancelledError as error:
        # A channel that is closed cancels its calls, which must not look like a cancelled task.
        if task and task.cancelling() == cancels:
            raise EndpointLost(f"The connection to {where.lower()} was closed.") from error
        raise


def _ours(error: grpc.aio.AioRpcError, where: str, refused: type[InferHubError]) -> InferHubError:
    """gRPC's details name addresses, so they stay in the chained exception, for the log."""
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return EndpointLost(f"{where} cannot be reached or died.")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"{where} did not answer before the deadline.")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in (error.details() or ""):
                return TooLarge("The request is larger than a message to a worker may be.")
            return Overloaded(f"{where} answers as many calls as it may.", retry_after_s=1.0)
        case grpc.StatusCode.UNAUTHENTICATED:
            return refused(f"{where} refused the join token; both sides need the same token file.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return refused(f"{where} speaks another version of this protocol; use the same release.")
    return UpstreamFailed(f"{where} failed in a way that it cannot explain ({error.code().name}).")
