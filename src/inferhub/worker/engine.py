"""A model that runs, as the host sees it, and the one pump from a backend's iterator to `emit`.

The other implementation, a model in a child process, is `process`. Nothing here queues or waits, but calls
that share batches do so in `batching`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from inferhub.backends.base import Backend, BatchBackend
from inferhub.core.call import Call, Delta, Emit, Finished
from inferhub.core.errors import InferHubError, InternalError, UpstreamFailed
from inferhub.core.models import Capability
from inferhub.worker.batching.batcher import Batcher, max_batch

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """One loaded model."""

    @property
    def capabilities(self) -> tuple[Capability, ...]: ...

    @property
    def device(self) -> str: ...

    @property
    def is_ready(self) -> bool:
        """False while it is being brought back after a crash."""

    @property
    def is_loaded(self) -> bool:
        """False while it waits for its first call."""

    @property
    def is_loading(self) -> bool:
        """While calls wait for it: it is being loaded, or started again."""

    @property
    def memory(self) -> Mapping[str, int]:
        """Device → bytes that its own process took when measured last; empty without such a process."""

    async def measure(self) -> None:
        """Bring `memory` up to date. Never raises."""

    @property
    def has_failed(self) -> bool:
        """True when it will not come back by itself."""

    async def infer(self, call: Call, emit: Emit) -> None: ...

    @property
    def can_unload_busy(self) -> bool:
        """True when calls that do not stop cannot be hurt, because a whole process goes with them."""

    async def unload(self) -> None:
        """Called once."""


class InProcessEngine:
    """A backend in this process; it lives and dies with the worker."""

    is_ready = True
    is_loaded = True
    is_loading = False
    has_failed = False
    can_unload_busy = False
    memory: Mapping[str, int] = {}

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._batcher: Batcher | None = None
        if isinstance(backend, BatchBackend) and max_batch(backend) > 1:
            self._batcher = Batcher(backend)

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        return self._backend.capabilities

    @property
    def device(self) -> str:
        return self._backend.device

    async def measure(self) -> None:
        """Its share of this process cannot be told apart."""

    async def infer(self, call: Call, emit: Emit) -> None:
        if self._batcher is None or not self._batcher.takes(call):
            await pump(self._backend, call, emit)
            return
        for chunk in await self._batcher.answer(call):
            await emit(chunk)

    async def unload(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()
        await self._backend.unload()


async def pump(backend: Backend, call: Call, emit: Emit) -> None:
    """Emit what the backend yields, in this task, and make sure that it keeps its contract.

    `Finished` is held until the iterator has ended: only then is it known to be the last, and a client
    that has seen the end finds the engine free.
    """
    finished: Finished | None = None
    async with _closing(backend.run(call), call) as chunks:
        while (chunk := await _next(chunks, call)) is not None:
            if finished is not None or not isinstance(chunk, Delta | Finished):
                _log.error(
                    "Backend %r broke its contract in call %s: %s %s",
                    call.model,
                    call.id,
                    type(chunk).__name__,
                    "after Finished" if finished else "is no chunk",
                )
                raise InternalError
            if isinstance(chunk, Finished):
                finished = chunk
            else:
                await emit(chunk)
    if finished is None:
        raise UpstreamFailed(f"Model {call.model!r} stopped before the end of its answer.")
    await emit(finished)


async def _next(chunks: AsyncIterator[Any], call: Call) -> Any:
    """The next chunk or None at the end; a backend's foreign exception ends here, in the log."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        return await anext(chunks, None)
    except InferHubError:
        raise
    except asyncio.CancelledError as error:
        # Some client libraries cancel their own futures; that is a failure, not a cancelled call.
        if task is None or task.cancelling() > cancels:
            raise
        _log.exception("Backend of %r cancelled itself in call %s", call.model, call.id)
        raise InternalError from error
    except Exception as error:
        _log.exception("Backend of %r failed in call %s", call.model, call.id)
        raise InternalError from error


@asynccontextmanager
async def _closing(chunks: AsyncIterator[Any], call: Call) -> AsyncIterator[AsyncIterator[Any]]:
    """`contextlib.aclosing`, for iterators whose clean-up may fail: the call's own outcome stands."""
    try:
        yield chunks
    finally:
        try:
            await chunks.aclose()  # type: ignore[attr-defined]
        except Exception:
            _log.exception("Backend of %r failed to clean up after call %s", call.model, call.id)
