"""A call that listens: made from a transcription request, run beside the task that reads the socket.

`asr` and `realtime` hold at most one each at a time. It is admitted, metered and traced like any other call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from inferhub.core.call import Call, Chunk, Criticality, Delta, Finished, Frame, Handler, Started
from inferhub.core.clock import new_id
from inferhub.core.errors import InferHubError, InternalError, ModelNotFound
from inferhub.core.usage import Usage
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone
from inferhub.gateway.sockets.incoming import Incoming
from inferhub.gateway.sockets.switchboard import Caller
from inferhub.gateway.surface import DefaultModel
from inferhub.modalities.transcription import MODALITY, TranscriptDelta, TranscriptionRequest

_log = logging.getLogger(__name__)
_SLACK_S = 60.0
"""The session's own end comes first: it lets the last utterance be heard."""


@dataclass(frozen=True, slots=True)
class Listening:
    """What every listening call needs of the gateway."""

    handler: Handler
    limits: GatewayLimits
    default_model: DefaultModel


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who is told what becomes of a call; each in the call's own task."""

    started: Callable[[Started], Awaitable[None]]
    said: Callable[[TranscriptDelta], Awaitable[None]]
    done: Callable[[Usage], Awaitable[None]]
    failed: Callable[[InferHubError], Awaitable[None]]


class LiveCall:
    """From `start` until it is `done`, or has `failed`."""

    def __init__(self, given: Listening, caller: Caller, request: TranscriptionRequest, to: Reporter) -> None:
        """Raises `InferHubError` for a request that cannot be right."""
        MODALITY.check(request)
        if not request.model:
            needed = {"live", *MODALITY.requires(request)}
            request.model = given.default_model(MODALITY.name, needed, caller.principal.may_call) or ""
        if not request.model:
            raise ModelNotFound("No model that transcribes live is there for this key.", param="model")
        self._given = given
        self._to = to
        self._incoming = Incoming(given.limits.write_timeout_s)
        self.id = new_id("req")
        self._call = Call(
            id=self.id,
            modality=MODALITY.name,
            model=request.model,
            request=request,
            body=msgspec.json.encode(request),
            principal=caller.principal,
            deadline_s=time.monotonic() + given.limits.session_timeout_s + _SLACK_S,
            stream=True,
            traceparent=caller.traceparent,
            incoming=self._incoming,
            cache="off",
            criticality=Criticality.REALTIME,
        )
        self._task = asyncio.ensure_future(self._run())

    @property
    def is_over(self) -> bool:
        return self._task.done()

    async def hear(self, frame: Frame) -> None:
        """Waits while the model has enough to do. Raises `Overloaded` where it does nothing."""
        await self._incoming.put(frame)

    async def finish(self) -> None:
        """Nothing more will be said; returns when all of it is answered."""
        await self._incoming.end()
        # `wait` alone: what became of it was reported, and a cancelled caller must not wait for it.
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        """At once: the engine is free when this returns."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._given.handler(self._call, self._emit)
        except ClientGone:
            return  # whoever reads the socket learns it, too
        except InferHubError as error:
            await self._to.failed(error)
        except Exception:
            _log.exception("a live call failed unexpectedly", extra={"request_id": self.id})
            await self._to.failed(InternalError())
        finally:
            await self._incoming.end()

    async def _emit(self, chunk: Chunk) -> None:
        if isinstance(chunk, Delta):
            await self._to.said(chunk.payload)
        elif isinstance(chunk, Started):
            await self._to.started(chunk)
        elif isinstance(chunk, Finished):
            await self._to.done(chunk.usage)
