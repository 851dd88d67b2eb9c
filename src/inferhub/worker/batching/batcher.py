"""Collects calls while the engine is busy and computes them together when it is idle; one batch at a time.

The engine of a `BatchBackend` makes one. It never waits for a batch to fill (but see `patience`), knows no
slots and emits nothing: a call gets its chunks, or its error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inferhub.backends.base import BatchBackend
from inferhub.core.call import Call, Chunk, Delta, Finished
from inferhub.core.errors import EndpointLost, InferHubError, InternalError, OutOfMemory
from inferhub.worker.batching.cap import Cap
from inferhub.worker.batching.choose import Limits, Waiting, choose, padded_cost
from inferhub.worker.batching.fit import Fit
from inferhub.worker.batching.patience import Pace

_log = logging.getLogger(__name__)

_LEAST_LENGTH = 1e-6

Chunks = Sequence[Chunk]
Outcome = Chunks | InferHubError
Compute = Callable[[Sequence[Call]], Coroutine[Any, Any, Sequence[Outcome]]]


@dataclass(slots=True, eq=False)
class _Item:
    call: Call
    waiting: Waiting
    answer: asyncio.Future[Chunks]


class Batcher:
    """In front of one backend, for one event loop."""

    def __init__(self, backend: BatchBackend, compute: Compute | None = None) -> None:
        """`compute`: instead of the backend's own `run_batch`, for one that is loaded in another process."""
        self._backend = backend
        self._run_batch: Compute = compute or backend.run_batch
        self._cap = Cap(max_batch(backend))
        self._fit = Fit()
        self._pace = Pace()
        self._open: dict[_Item, None] = {}
        """All that wait for an answer."""
        self._pool: dict[_Item, None] = {}
        """Those of them that are in no batch yet."""
        self._batch: tuple[Sequence[_Item], asyncio.Task[Sequence[Outcome]]] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._is_full = asyncio.Event()

    def takes(self, call: Call) -> bool:
        """Whether it may share a batch; the others go through `run`."""
        return (
            call.modality in self._backend.batches
            and not call.stream
            and call.incoming is None
            and call.cost <= self._backend.max_batch_cost
        )

    async def answer(self, call: Call) -> Chunks:
        """All chunks of the answer, `Finished` last. Cancelled, the call leaves its batch."""
        now_s = time.monotonic()
        item = _Item(call, self._seen(call, now_s), asyncio.get_running_loop().create_future())
        self._open[item] = self._pool[item] = None
        self._pace.arrived(now_s)
        if len(self._pool) >= self._cap.calls:
            self._is_full.set()
        if self._loop is None:
            self._loop = asyncio.create_task(self._work(), name=f"batches of {self._backend.spec.name}")
        try:
            return await item.answer
        finally:
            self._pool.pop(item, None)
            del self._open[item]
            if item.answer.done() and not item.answer.cancelled():
                item.answer.exception()  # nobody else looks at it where the caller was cancelled just now
            self._stop_unwanted()

    async def close(self) -> None:
        """Stop the batch that is being computed. Whoever still waits is told that the model is gone."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    def _seen(self, call: Call, now_s: float) -> Waiting:
        return Waiting(
            modality=call.modality,
            cost=call.cost or 1.0,
            length=max(self._backend.length(call), _LEAST_LENGTH),
            deadline_s=call.deadline_s,
            arrived_s=now_s,
            criticality=call.criticality,
            tenant=call.principal.tenant_id,
        )

    def _stop_unwanted(self) -> None:
        """A batch is computed as long as anybody wants something of it."""
        if self._batch is not None:
            items, task = self._batch
            if all(item.answer.done() for item in items):
                task.cancel()

    async def _work(self) -> None:
        """Until nobody waits. Whatever happens, nobody is left waiting."""
        why: InferHubError = EndpointLost()
        try:
            while self._pool:
                await self._gather()
                if batch := self._take():
                    await self._compute(batch, tries=1)
        except Exception:
            _log.exception("The batches of %r broke", self._backend.spec.name)
            why = InternalError()
        finally:
            self._loop = None
            self._pool.clear()
            for item in self._open:
                _fail(item, why)

    async def _gather(self) -> None:
        if not self._backend.may_wait:
            return
        wait_s = self._pace.wait_s(self._cap.calls, time.monotonic())
        if wait_s and len(self._pool) < self._cap.calls:
            self._is_full.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._is_full.wait()

    def _take(self) -> list[_Item]:
        pool = [item for item in self._pool if not item.answer.done()]
        limits = Limits(self._cap.calls, self._backend.max_batch_cost)
        chosen = choose([item.waiting for item in pool], limits, self._fit, time.monotonic())
        batch = [pool[position] for position in chosen]
        for item in batch:
            del self._pool[item]
        return batch

    async def _compute(self, batch: Sequence[_Item], tries: int) -> None:
        """Answer every call. A batch that fails is tried in halves, then one by one: three tries at most."""
        batch = [item for item in batch if not item.answer.done()]
        if not batch:
            return
        try:
            results = await self._run(batch)
        except OutOfMemory as error:
            self._cap.was_too_much(len(batch))
            if len(batch) == 1:
                _fail(batch[0], error)
            for part in _halves(batch):
                await self._compute(part, tries)
        except InferHubError as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            _log.warning(
                "A batch of %d calls of model %r failed (%s); they are tried in parts",
                len(batch), self._backend.spec.name, error.wire_code,
            )  # fmt: skip
            for part in _halves(batch) if tries == 1 else [[item] for item in batch]:
                await self._compute(part, tries + 1)
        else:
            self._cap.was_fine()
            for item, result in zip(batch, results, strict=True):
                self._deliver(item, result, len(batch))

    async def _run(self, batch: Sequence[_Item]) -> Sequence[Outcome]:
        """Raises `InferHubError` only, or is cancelled together with the loop."""
        kind = batch[0].waiting.modality
        began_s = time.monotonic()
        task = asyncio.ensure_future(self._run_batch([item.call for item in batch]))
        self._batch = (batch, task)
        try:
            await asyncio.wait([task])
        finally:
            self._batch = None
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        took_s = time.monotonic() - began_s
        results = self._outcome(task, batch)
        waiting = [item.waiting for item in batch]
        self._fit.learn(kind, max(call.length for call in waiting), padded_cost(waiting), took_s)
        self._pace.computed(len(batch), took_s)
        return results

    def _outcome(self, task: asyncio.Task[Sequence[Outcome]], batch: Sequence[_Item]) -> Sequence[Outcome]:
        name = self._backend.spec.name
        if task.cancelled():
            if any(not item.answer.done() for item in batch):
                _log.error("Backend of %r cancelled itself in a batch of %d", name, len(batch))
            raise InternalError
        error = task.exception()
        if isinstance(error, InferHubError):
            raise error
        if error is not None:
            _log.error("Backend of %r failed in a batch of %d", name, len(batch), exc_info=error)
            raise InternalError from error
        results = task.result()
        if len(results) != len(batch):
            _log.error("Backend of %r gave %d answers to %d calls", name, len(results), len(batch))
            raise InternalError
        return results

    def _deliver(self, item: _Item, result: Outcome, size: int) -> None:
        if isinstance(result, InferHubError):
            _fail(item, result)
        elif (answer := _whole(result, size)) is None:
            name, call = self._backend.spec.name, item.call.id
            _log.error("Backend of %r broke its contract in call %s: no whole answer", name, call)
            _fail(item, InternalError())
        elif not item.answer.done():
            item.answer.set_result(answer)


def max_batch(backend: BatchBackend) -> int:
    """Calls of one batch at most; 1 where the operator wants none."""
    return backend.spec.max_batch or backend.default_max_batch


def _whole(result: Chunks, size: int) -> Chunks | None:
    """The answer, with the size of its batch; None for what is none."""
    if not result or not all(isinstance(chunk, Delta) for chunk in result[:-1]):
        return None
    finished = result[-1]
    if not isinstance(finished, Finished):
        return None
    return result if finished.batch else [*result[:-1], replace(finished, batch=size)]


def _halves(batch: Sequence[_Item]) -> list[Sequence[_Item]]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]] if middle else []


def _fail(item: _Item, error: InferHubError) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)
