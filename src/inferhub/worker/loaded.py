"""One loaded model: its queue, its engine, and the ways a call can be ended from outside.

The host makes it. Deadline, unload and drain end a call by the same means, `asyncio.timeout`, so that
the caller's own cancellation is never mistaken for one of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import replace

from inferhub.core.call import Call, Chunk, Emit, Finished
from inferhub.core.errors import DeadlineExceeded, EndpointLost, InferHubError, InternalError
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.modalities import modalities as all_modalities
from inferhub.telemetry.batches import BATCHES
from inferhub.worker.lifecycle.managed import ManagedEngine
from inferhub.worker.prefixes import RecentPrefixes
from inferhub.worker.queue.fair import Ticket
from inferhub.worker.queue.lane import Lane

# Backends promise to stop within a second; beyond this the memory is better lost than freed in use.
STOP_TIMEOUT_S = 10.0


class Loaded:
    """A model that takes calls until `close`."""

    def __init__(
        self, spec: ModelSpec, engine: ManagedEngine, modalities: Collection[str] | None = None
    ) -> None:
        """`modalities`: those of the engine's that are served; None serves all."""
        self.spec = spec
        self.engine = engine
        self._modalities = modalities
        self._lane = Lane(spec.slots, spec.queue_limit)
        self._prefixes = RecentPrefixes()
        self._calls: dict[asyncio.Timeout, type[InferHubError] | None] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def status(self) -> ModelStatus:
        if not self.engine.is_loaded:
            self._prefixes.clear()
        return ModelStatus(
            spec=self.spec,
            capabilities=self.capabilities(),
            device=self.engine.device,
            running=self._lane.running,
            queued=self._lane.queued + self.engine.waiting,
            ready=self.engine.is_ready,
            loaded=self.engine.is_loaded,
            memory_bytes=sum(self.engine.memory.values()),
            loading=self.engine.is_loading,
            pending_cost=self._lane.pending_cost,
            s_per_cost=self._lane.s_per_cost,
            prefixes=self._prefixes.digest(),
        )

    def capabilities(self) -> tuple[Capability, ...]:
        offered, served = self.engine.capabilities, self._modalities
        return offered if served is None else tuple(c for c in offered if c.modality in served)

    async def infer(self, call: Call, emit: Emit) -> None:
        arrived_s = time.monotonic()
        if call.deadline_s <= arrived_s:
            raise DeadlineExceeded("The call's time was over when it reached the model.")
        call = _counted(call)
        ticket = Ticket(call.criticality, call.principal.tenant_id, call.cost, call.deadline_s)
        is_running = False
        scope = asyncio.timeout(call.deadline_s - arrived_s)
        try:
            async with scope:
                self._calls[scope] = None
                self._is_idle.clear()
                async with self.engine.held(), self._lane.slot(ticket):
                    is_running = True
                    self._prefixes.add(call.prefixes)
                    await self.engine.infer(call, emit if call.stream else self._noting(call, emit))
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise self._ended(scope, is_running, time.monotonic() - arrived_s) from error
        finally:
            self._calls.pop(scope, None)
            if not self._calls:
                self._is_idle.set()

    def _noting(self, call: Call, emit: Emit) -> Emit:
        """`emit`, and the size of the batch that the call was in."""

        async def note(chunk: Chunk) -> None:
            if isinstance(chunk, Finished) and chunk.batch:
                BATCHES.add(call.modality, self.spec.public_name, chunk.batch)
            await emit(chunk)

        return note

    def abort(self, why: type[InferHubError]) -> None:
        """End every call that waits or runs, with this error."""
        now_s = asyncio.get_running_loop().time()
        for scope in self._calls:
            if not scope.expired():
                self._calls[scope] = why
                scope.reschedule(now_s)

    async def wait_idle(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End the calls, then free the model."""
        self.abort(EndpointLost)
        if not await self.wait_idle(STOP_TIMEOUT_S) and not self.engine.can_unload_busy:
            raise InternalError(
                f"Model {self.spec.name!r} has calls that do not stop; its memory is not freed."
            )
        await self.engine.unload()

    def _ended(self, scope: asyncio.Timeout, is_running: bool, after_s: float) -> InferHubError:
        why = self._calls.get(scope)
        if why is not None:
            return why()
        where = "while it answered" if is_running else f"in the queue of model {self.spec.public_name!r}"
        return DeadlineExceeded(f"The call's time was over after {after_s:.1f} s {where}.")


def _counted(call: Call) -> Call:
    """With its cost, where the gateway did not say it."""
    if call.cost > 0:
        return call
    modality = all_modalities()[call.modality]
    return replace(call, cost=modality.cost(call.request, call.media, len(call.body)))
