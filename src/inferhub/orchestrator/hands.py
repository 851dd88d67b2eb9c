"""Does what was planned: loads and unloads on workers, one after the other on each, never decides.

`service` uses it. The same load asked for twice happens once; what fails is left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from inferhub.core.errors import (
    DeadlineExceeded,
    Draining,
    EndpointLost,
    EndpointStalled,
    InferHubError,
    InternalError,
)
from inferhub.core.fleet import Deployment
from inferhub.core.models import ModelSpec, ModelStatus, public_name
from inferhub.orchestrator.plan import Pair
from inferhub.transport.base import Transport

_log = logging.getLogger(__name__)

AWAY = (EndpointLost, EndpointStalled, Draining)
"""Errors that say nothing of the model: the worker does not answer, or is leaving."""
FIRST_BACKOFF_S = 5.0
MAX_BACKOFF_S = 60.0
MAX_AT_ONCE = 512
"""Workers that load or unload at the same time."""

Done = Callable[[str, str, ModelStatus | None], None]
"""Told the worker's address, the model, and what it is now (None: unloaded)."""


@dataclass(frozen=True, slots=True)
class _Failure:
    times: int
    not_before_s: float


class Hands:
    def __init__(
        self,
        reach: Callable[[str], Transport],
        *,
        load_timeout_s: float,
        clock: Callable[[], float],
        done: Done,
    ) -> None:
        self._reach = reach
        self._load_timeout_s = load_timeout_s
        self._clock = clock
        self._done = done
        # One load or unload at a time on a worker: two at once would compete for its memory.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._loads: dict[Pair, asyncio.Task[ModelStatus]] = {}
        self._unloads: dict[Pair, asyncio.Task[bool]] = {}
        self._failures: dict[Pair, _Failure] = {}
        self._told: dict[Pair, ModelSpec] = {}
        self.acts: Counter[str] = Counter()
        """What was done, by kind."""

    @property
    def loading(self) -> Collection[Pair]:
        return self._loads.keys()

    @property
    def unloading(self) -> Collection[Pair]:
        return self._unloads.keys()

    @property
    def told(self) -> Mapping[Pair, ModelSpec]:
        """What was loaded last, by the workers that are there."""
        return self._told

    def not_before_s(self) -> Mapping[Pair, float]:
        return {pair: failure.not_before_s for pair, failure in self._failures.items()}

    def load(
        self, worker: str, deployment: Deployment, reason: str, begun: Callable[[], None] = lambda: None
    ) -> asyncio.Task[ModelStatus]:
        """Under way, or begun now; `begun` is called when it is the worker's turn. Its failure is seen to
        here, whether anybody awaits it or not."""
        pair = (worker, deployment.spec.name)
        task = self._loads.get(pair)
        if task is None:
            task = asyncio.create_task(self._load(worker, deployment, reason, begun))
            self._loads[pair] = task
            task.add_done_callback(lambda task: self._loaded(pair, deployment.spec, task))
        return task

    def unload(self, worker: str, name: str, reason: str, *, is_forced: bool = True) -> asyncio.Task[bool]:
        """Its result: whether it was done. Unless forced, a model that has calls after all stays."""
        pair = (worker, name)
        task = self._unloads.get(pair)
        if task is None:
            task = asyncio.create_task(self._unload(worker, name, reason, is_forced))
            self._unloads[pair] = task
            task.add_done_callback(lambda task: self._unloaded(pair, task))
        return task

    async def cancel(self, pairs: Collection[Pair]) -> None:
        """Loads that nobody waits for any more."""
        tasks = [task for pair in pairs if (task := self._loads.get(pair)) is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, worker: str) -> None:
        """It is out of the fleet: nothing waits for it, and what failed may be tried when it is back."""
        for pair, task in (*self._loads.items(), *self._unloads.items()):
            if pair[0] == worker:
                task.cancel()
        for known in (self._failures, self._told):
            for pair in [pair for pair in known if pair[0] == worker]:
                del known[pair]

    async def close(self) -> None:
        tasks = [*self._loads.values(), *self._unloads.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(
        self, worker: str, deployment: Deployment, reason: str, begun: Callable[[], None]
    ) -> ModelStatus:
        name = deployment.spec.name
        extra = {"worker": worker, "model": public_name(name)}
        async with self._lock(worker), self._at_once:
            begun()
            _log.info("loading, because %s", reason, extra=extra)
            try:
                async with asyncio.timeout(self._load_timeout_s):
                    status = await self._reach(worker).load(deployment.spec)
            except TimeoutError as error:
                raise DeadlineExceeded(f"It was not loaded within {self._load_timeout_s:g} s.") from error
            except InferHubError:
                raise
            except Exception as error:
                _log.error("load failed unexpectedly", exc_info=error, extra=extra)
                raise InternalError from error
        return status

    def _loaded(self, pair: Pair, spec: ModelSpec, task: asyncio.Task[ModelStatus]) -> None:
        del self._loads[pair]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.acts["load"] += 1
            self._told[pair] = spec
            self._failures.pop(pair, None)
            self._done(*pair, task.result())
        else:
            self.acts["load_failed"] += 1
            self._failed(pair, "load", error)

    async def _unload(self, worker: str, name: str, reason: str, is_forced: bool) -> bool:
        extra = {"worker": worker, "model": public_name(name)}
        async with self._lock(worker), self._at_once:
            transport = self._reach(worker)
            if not is_forced:
                # The report that this was decided on is as old as an interval.
                models = (await transport.status()).models
                if any(model.running or model.queued for model in models if model.spec.name == name):
                    return False
            _log.info("unloading, because %s", reason, extra=extra)
            await transport.unload(name)
            return True

    def _unloaded(self, pair: Pair, task: asyncio.Task[bool]) -> None:
        del self._unloads[pair]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self.acts["unload_failed"] += 1
            self._failed(pair, "unload", error)
        elif task.result():
            self.acts["unload"] += 1
            self._told.pop(pair, None)
            self._failures.pop(pair, None)
            self._done(*pair, None)

    def _failed(self, pair: Pair, verb: str, error: BaseException) -> None:
        times = self._failures[pair].times + 1 if pair in self._failures else 1
        wait_s = min(FIRST_BACKOFF_S * 2 ** (min(times, 10) - 1), MAX_BACKOFF_S)
        self._failures[pair] = _Failure(times, self._clock() + wait_s)
        said = error.message if isinstance(error, InferHubError) else repr(error)
        extra = {"worker": pair[0], "model": public_name(pair[1])}
        _log.warning("%s failed, tried again in %d s: %s", verb, wait_s, said, extra=extra)

    def _lock(self, worker: str) -> asyncio.Lock:
        return self._locks.setdefault(worker, asyncio.Lock())
