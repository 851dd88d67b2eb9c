"""Holds the models of one worker: loads them at once or on demand, unloads, and finds the one a call is for.

`service` calls it. Weights come through the `resolve` port, so it knows neither registry nor network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options
from inferhub.core.call import Call, Emit
from inferhub.core.errors import (
    Conflict,
    InferHubError,
    InternalError,
    ModelNotFound,
    SetupError,
    Unsupported,
    WeightsMissing,
)
from inferhub.core.models import Load, ModelSpec, ModelStatus
from inferhub.worker.demand import DemandEngine
from inferhub.worker.engine import Engine, InProcessEngine
from inferhub.worker.loaded import Loaded
from inferhub.worker.room import Room

_log = logging.getLogger(__name__)

Isolation = Literal["auto", "always", "never"]
"""Who runs in a child process: backends that ask for it, all, or (inside a child) none."""


PROCESS_BYTES = 64 * 10**6
"""Of a child process without a model: the interpreter and an engine's libraries."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What the models of one worker may take."""

    memory_bytes: int = 1 << 40
    load_s: float = 300.0
    """Of one load on demand, waiting for room included."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A model with its weights found, ready to be started."""

    kind: type[Backend]
    spec: ModelSpec
    weights: Path | None
    files: tuple[Path, ...]

    @property
    def expected_bytes(self) -> int:
        """Before it was ever measured: weights are mapped or read whole."""
        return PROCESS_BYTES + sum(map(_size, self.files))


class Host:
    """The models of one worker by name."""

    def __init__(
        self,
        resolve: Callable[[str], Path],
        *,
        isolation: Isolation = "auto",
        backends: Callable[[str], type[Backend]] = backend_class,
        limits: HostLimits = HostLimits(),
        modalities: Collection[str] | None = None,
    ) -> None:
        """`modalities`: those that are served; None serves all."""
        self._resolve = resolve
        self._isolation = isolation
        self._backends = backends
        self._limits = limits
        self._modalities = modalities
        self._models: dict[str, Loaded] = {}
        self._declined: dict[str, ModelStatus] = {}
        self._room = Room(limits.memory_bytes, self._pinned)
        # One load or unload of a name at a time; a lock lives as long as someone uses it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def models(self) -> tuple[ModelStatus, ...]:
        """Also those of modalities that are not served here, so that nobody asks for them again."""
        taken = {name: loaded.status() for name, loaded in list(self._models.items())} | self._declined
        return tuple(status for _, status in sorted(taken.items()))

    async def infer(self, call: Call, emit: Emit) -> None:
        loaded = self._models.get(call.model)
        if loaded is None:
            raise ModelNotFound(f"This worker has no model {call.model!r}.", param="model")
        offered = [c.modality for c in loaded.capabilities()]
        if call.modality not in offered:
            raise Unsupported(
                f"Model {call.model!r} does not offer {call.modality}; it offers {', '.join(offered)}.",
                param="model",
            )
        await loaded.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        kind = self._backends(spec.backend)
        check_options(kind, spec)
        spec = replace(spec, slots=spec.slots or kind.default_slots, load=load_of(kind, spec))
        async with self._lock(spec.name):
            if not self._may_serve(kind, spec):
                self._declined[spec.name] = ModelStatus(spec, (), spec.device, ready=False, loaded=False)
                return self._declined[spec.name]
            loaded = self._models.get(spec.name)
            if loaded is not None and loaded.spec != spec:
                raise Conflict(
                    f"Model {spec.name!r} is loaded with other settings; unload it first.", param="name"
                )
            if loaded is not None and loaded.engine.has_failed:
                await self._drop(spec.name)
                loaded = None
            if loaded is None:
                loaded = Loaded(spec, await self._engine(kind, spec), self._modalities)
                self._models[spec.name] = loaded
                if loaded.engine.is_loaded:
                    _log.info("Model %r is loaded on %s", spec.name, loaded.engine.device)
                else:
                    _log.info("Model %r waits for its first call", spec.name)
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
        await self._room.close()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _pinned(self) -> list[Engine]:
        engines = [loaded.engine for loaded in self._models.values()]
        return [engine for engine in engines if not isinstance(engine, DemandEngine)]

    def _may_serve(self, kind: type[Backend], spec: ModelSpec) -> bool:
        if self._modalities is None:
            return True
        offered = possible_modalities(kind, spec)
        return offered is None or not offered.isdisjoint(self._modalities)

    async def _drop(self, name: str) -> None:
        self._declined.pop(name, None)
        loaded = self._models.pop(name, None)
        if loaded is not None:
            await loaded.close()
            _log.info("Model %r is unloaded", name)

    async def _engine(self, kind: type[Backend], spec: ModelSpec) -> Engine:
        """Loaded, or on demand with everything checked that can be checked before."""
        try:
            plan = await self._plan(kind, spec)
            offered = kind.offers(spec) if spec.load == "demand" else None
            if offered is not None:
                return DemandEngine(
                    spec.name,
                    lambda: self._start(plan),
                    self._room,
                    offered=offered,
                    device=spec.device,
                    expected_bytes=plan.expected_bytes,
                    load_timeout_s=self._limits.load_s,
                )
            engine = await self._start(plan)
            await engine.measure()
        except InferHubError:
            raise
        except Exception as error:
            raise _unexpected(spec, error) from error
        return engine

    async def _start(self, plan: _Plan) -> Engine:
        try:
            if self._isolation == "always" or (self._isolation == "auto" and plan.kind.isolated):
                # Late: a worker that only speaks to vendors needs no gRPC.
                from inferhub.worker.process import ChildEngine

                return await ChildEngine.start(plan.spec, plan.weights)
            backend = plan.kind(plan.spec, plan.weights)
            await backend.load()
            return InProcessEngine(backend)
        except InferHubError:
            raise
        except Exception as error:
            raise _unexpected(plan.spec, error) from error

    async def _plan(self, kind: type[Backend], spec: ModelSpec) -> _Plan:
        weights = None
        if kind.needs_weights:
            if spec.weights is None:
                raise WeightsMissing(
                    f"Model {spec.name!r}: backend {spec.backend!r} needs 'weights', "
                    "a file or an indexed name.",
                    param="weights",
                )
            weights = await asyncio.to_thread(self._resolve, spec.weights)
        options: dict[str, Any] = dict(spec.options)
        known = check_options(kind, spec)
        files = [weights] if weights else []
        for option in kind.further_weights:
            if name := getattr(known, option):
                files.append(await asyncio.to_thread(self._resolve, name))
                options[option] = str(files[-1])
        return _Plan(kind, replace(spec, options=options), weights, tuple(files))


def possible_modalities(kind: type[Backend], spec: ModelSpec) -> frozenset[str] | None:
    """What a model can be for at most, as far as that is known without loading it; None where it is not."""
    offered = kind.offers(spec)
    if offered is not None:
        return frozenset(capability.modality for capability in offered)
    return kind.may_offer


def load_of(kind: type[Backend], spec: ModelSpec) -> Load:
    """When it is loaded, with the backend's own choice put in. Raises `SetupError` where it cannot wait."""
    wanted = spec.load or kind.default_load
    if wanted == "demand" and kind.offers(spec) is None:
        if spec.load is not None:
            raise SetupError(
                f"Model {spec.name!r} cannot be loaded on demand: only when loaded does backend "
                f"{spec.backend!r} know what it offers. Leave 'load' out.",
                param="load",
            )
        return "start"
    return wanted


def _unexpected(spec: ModelSpec, error: Exception) -> InternalError:
    _log.error("Model %r could not be loaded", spec.name, exc_info=error)
    return InternalError(
        f"Model {spec.public_name!r} could not be loaded; the log of its worker has the details."
    )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
