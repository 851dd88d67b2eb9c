"""Holds the loaded models of one worker: loads, unloads, and finds the one a call is for.

`service` calls it. Weights come through the `resolve` port, so it knows neither registry nor network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal
from weakref import WeakValueDictionary

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options
from inferhub.core.call import Call, Emit
from inferhub.core.errors import (
    Conflict,
    InferHubError,
    InternalError,
    ModelNotFound,
    Unsupported,
    WeightsMissing,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.worker.engine import Engine, InProcessEngine
from inferhub.worker.loaded import Loaded

_log = logging.getLogger(__name__)

Isolation = Literal["auto", "always", "never"]
"""Who runs in a child process: backends that ask for it, all, or (inside a child) none."""


class Host:
    """The models of one worker by name."""

    def __init__(
        self,
        resolve: Callable[[str], Path],
        *,
        isolation: Isolation = "auto",
        backends: Callable[[str], type[Backend]] = backend_class,
    ) -> None:
        self._resolve = resolve
        self._isolation = isolation
        self._backends = backends
        self._models: dict[str, Loaded] = {}
        # One load or unload of a name at a time; a lock lives as long as someone uses it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(loaded.status() for _, loaded in sorted(self._models.items()))

    async def infer(self, call: Call, emit: Emit) -> None:
        loaded = self._models.get(call.model)
        if loaded is None:
            raise ModelNotFound(f"This worker has no model {call.model!r}.", param="model")
        offered = [c.modality for c in loaded.engine.capabilities]
        if call.modality not in offered:
            raise Unsupported(
                f"Model {call.model!r} does not offer {call.modality}; it offers {', '.join(offered)}.",
                param="model",
            )
        await loaded.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        if spec.slots == 0:
            spec = replace(spec, slots=self._backends(spec.backend).default_slots)
        async with self._lock(spec.name):
            loaded = self._models.get(spec.name)
            if loaded is not None and loaded.spec != spec:
                raise Conflict(
                    f"Model {spec.name!r} is loaded with other settings; unload it first.", param="name"
                )
            if loaded is not None and loaded.engine.has_failed:
                await self._drop(spec.name)
                loaded = None
            if loaded is None:
                loaded = Loaded(spec, await self._start(spec))
                self._models[spec.name] = loaded
                _log.info("Model %r is loaded on %s", spec.name, loaded.engine.device)
            return loaded.status()

    async def unload(self, name: str) -> None:
        async with self._lock(name):
            await self._drop(name)

    def abort(self, why: type[InferHubError]) -> None:
        for loaded in self._models.values():
            loaded.abort(why)

    async def wait_idle(self, timeout_s: float) -> bool:
        """True when every call ended in time."""
        waits = [loaded.wait_idle(timeout_s) for loaded in self._models.values()]
        return all(await asyncio.gather(*waits))

    async def close(self) -> None:
        """Unload everything, also when one of them fails."""
        outcomes = await asyncio.gather(*(self.unload(n) for n in list(self._models)), return_exceptions=True)
        for failure in outcomes:
            if isinstance(failure, BaseException):
                _log.error("A model could not be unloaded", exc_info=failure)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _drop(self, name: str) -> None:
        loaded = self._models.pop(name, None)
        if loaded is not None:
            await loaded.close()
            _log.info("Model %r is unloaded", name)

    async def _start(self, spec: ModelSpec) -> Engine:
        try:
            kind = self._backends(spec.backend)
            check_options(kind, spec)
            weights = await self._weights(kind, spec)
            if self._isolation == "always" or (self._isolation == "auto" and kind.isolated):
                # Late: a worker that only speaks to vendors needs no gRPC.
                from inferhub.worker.process import ChildEngine

                return await ChildEngine.start(spec, weights)
            backend = kind(spec, weights)
            await backend.load()
            return InProcessEngine(backend)
        except InferHubError:
            raise
        except Exception as error:
            _log.exception("Model %r could not be loaded", spec.name)
            raise InternalError(
                f"Model {spec.name!r} could not be loaded; the log of its worker has the details."
            ) from error

    async def _weights(self, kind: type[Backend], spec: ModelSpec) -> Path | None:
        if not kind.needs_weights:
            return None
        if spec.weights is None:
            raise WeightsMissing(
                f"Model {spec.name!r}: backend {spec.backend!r} needs 'weights', a file or an indexed name.",
                param="weights",
            )
        return await asyncio.to_thread(self._resolve, spec.weights)
