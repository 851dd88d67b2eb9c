"""Holds the models of one worker: loads them at once or on demand, unloads, and finds the one a call is for.

`service` calls it. Weights come through the `resolve` port, so it knows neither registry nor network.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options, slots_of
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
from inferhub.core.serving import DeviceStatus
from inferhub.telemetry.lifecycle import ModelTally
from inferhub.telemetry.resources import choose_device
from inferhub.worker.engine import Engine, InProcessEngine
from inferhub.worker.lifecycle.evict import CPU, Budget, Bytes, Keeping
from inferhub.worker.lifecycle.keeper import Keeper
from inferhub.worker.lifecycle.managed import Beginnings, ManagedEngine
from inferhub.worker.loaded import Loaded

_log = logging.getLogger(__name__)

Isolation = Literal["auto", "always", "never"]
"""Who runs in a child process: backends that ask for it, all, or (inside a child) none."""


PROCESS_BYTES = 64 * 10**6
"""Of a child process without a model: the interpreter and an engine's libraries."""


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What the models of one worker may take."""

    memory_bytes: int = 1 << 40
    vram_share: float = 0.9
    """Of each GPU's memory."""
    load_s: float = 300.0
    """Of one load, waiting for room included."""
    room_wait_s: float = 30.0
    """For models that are busy, before one that needs their room is refused."""
    idle_ttl_s: float | None = None
    """Of models with a process of their own whose spec does not say; None: they stay."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A model with its weights found, ready to be started."""

    kind: type[Backend]
    spec: ModelSpec
    weights: Path | None
    files: tuple[Path, ...]

    def expected(self, devices: Sequence[DeviceStatus]) -> Bytes:
        """Before it was ever measured: weights are mapped or read whole."""
        size = sum(map(_size, self.files))
        wanted = self.spec.device
        if wanted == "cpu" or (wanted == "auto" and not any(d.id != CPU for d in devices)):
            return {CPU: PROCESS_BYTES + size}
        device = choose_device(wanted, devices)
        if wanted == "auto":  # where it runs only the engine knows, later
            return {CPU: PROCESS_BYTES + size, device: size}
        return {CPU: PROCESS_BYTES, device: size}


@dataclass(slots=True, eq=False)
class _Held:
    """One model, as the host holds it."""

    loaded: Loaded
    loaders: int = 0
    """Who waits for it to be loaded; when the last gives up, nobody wants it."""
    is_kept: bool = False
    """Also when a load fails: it was loaded before, or is on demand."""


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
        devices: Callable[[], Sequence[DeviceStatus]] = tuple,
    ) -> None:
        """`modalities`: those that are served; None serves all."""
        self.tally = ModelTally()
        self._resolve = resolve
        self._isolation = isolation
        self._backends = backends
        self._limits = limits
        self._modalities = modalities
        self._devices = devices
        self._models: dict[str, _Held] = {}
        self._declined: dict[str, ModelStatus] = {}
        self._keeper = Keeper(Budget(limits.memory_bytes, limits.vram_share), limits.room_wait_s, devices)
        # One change of a name at a time; a lock lives as long as someone uses it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def models(self) -> tuple[ModelStatus, ...]:
        """Also those of modalities that are not served here, so that nobody asks for them again."""
        taken = {name: held.loaded.status() for name, held in list(self._models.items())} | self._declined
        return tuple(status for _, status in sorted(taken.items()))

    async def infer(self, call: Call, emit: Emit) -> None:
        held = self._models.get(call.model)
        if held is None:
            raise ModelNotFound(f"This worker has no model {call.model!r}.", param="model")
        offered = [c.modality for c in held.loaded.capabilities()]
        if call.modality not in offered:
            raise Unsupported(
                f"Model {call.model!r} does not offer {call.modality}; it offers {', '.join(offered)}.",
                param="model",
            )
        await held.loaded.infer(call, emit)

    async def load(self, spec: ModelSpec) -> ModelStatus:
        """Offer it, and have it in memory where it is not on demand. One that is there under this name takes
        over how it is to be kept, and is loaded where it was not."""
        kind = self._backends(spec.backend)
        check_options(kind, spec)
        spec = replace(spec, slots=slots_of(kind, spec), load=load_of(kind, spec))
        async with self._lock(spec.name):
            if not self._may_serve(kind, spec):
                self._declined[spec.name] = ModelStatus(spec, (), spec.device, ready=False, loaded=False)
                return self._declined[spec.name]
            held = self._models.get(spec.name)
            if held is None:
                held = self._models[spec.name] = await self._offer(kind, spec)
            elif _kept_as(spec, held.loaded.spec) != spec:
                raise Conflict(
                    f"Model {spec.name!r} is loaded with other settings; unload it first.", param="name"
                )
            else:
                held.loaded.spec = spec
                held.loaded.engine.keep(self._keeping(kind, spec))
            held.is_kept |= spec.load == "demand"
            held.loaders += 1
        # Not under the lock: an unload must be able to end it.
        try:
            if spec.load == "start":
                await held.loaded.engine.load()
                held.is_kept = True
            return held.loaded.status()
        finally:
            held.loaders -= 1
            if not held.is_kept and not held.loaders:
                await self._drop(spec.name, held)

    async def unload(self, name: str) -> None:
        async with self._lock(name):
            self._declined.pop(name, None)
            if (held := self._models.get(name)) is not None:
                await self._drop(name, held)

    def abort(self, why: type[InferHubError]) -> None:
        for held in self._models.values():
            held.loaded.abort(why)

    async def wait_idle(self, timeout_s: float) -> bool:
        """True when every call ended in time."""
        waits = [held.loaded.wait_idle(timeout_s) for held in self._models.values()]
        return all(await asyncio.gather(*waits))

    async def close(self) -> None:
        """Unload everything, also when one of them fails."""
        outcomes = await asyncio.gather(*(self.unload(n) for n in list(self._models)), return_exceptions=True)
        for failure in outcomes:
            if isinstance(failure, BaseException):
                _log.error("A model could not be unloaded", exc_info=failure)
        await self._keeper.close()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _may_serve(self, kind: type[Backend], spec: ModelSpec) -> bool:
        if self._modalities is None:
            return True
        offered = possible_modalities(kind, spec)
        return offered is None or not offered.isdisjoint(self._modalities)

    async def _drop(self, name: str, held: _Held) -> None:
        if self._models.get(name) is held:
            del self._models[name]
            await held.loaded.close()
            _log.info("Model %r is gone", name)

    async def _offer(self, kind: type[Backend], spec: ModelSpec) -> _Held:
        """Not loaded yet, with everything checked that can be checked before."""
        try:
            plan = await self._plan(kind, spec)
            has_process = self._has_process(kind)
            devices = await asyncio.to_thread(self._devices) if has_process else ()
            known = Beginnings(
                spec.name,
                spec.device,
                kind.offers(spec) or (),
                plan.expected(devices) if has_process else {},
                self._limits.load_s,
                spec.slots + spec.queue_limit,
            )
        except InferHubError:
            raise
        except Exception as error:
            raise _unexpected(spec, error) from error
        engine = ManagedEngine(
            known, partial(self._start, plan), self._keeper, self._keeping(kind, spec), self.tally
        )
        return _Held(Loaded(spec, engine, self._modalities))

    def _keeping(self, kind: type[Backend], spec: ModelSpec) -> Keeping:
        # One without a process would free nothing by leaving.
        usual = self._limits.idle_ttl_s if self._has_process(kind) else None
        ttl_s = usual if spec.idle_ttl_s is None else spec.idle_ttl_s
        return Keeping(spec.pinned, spec.pinned or spec.load == "start", ttl_s)

    def _has_process(self, kind: type[Backend]) -> bool:
        return self._isolation == "always" or (self._isolation == "auto" and kind.isolated)

    async def _start(self, plan: _Plan, on_death: Callable[[], None]) -> Engine:
        try:
            if self._has_process(plan.kind):
                # Late: a worker that only speaks to vendors needs no gRPC.
                from inferhub.worker.process import ChildEngine

                return await ChildEngine.start(plan.spec, plan.weights, on_death)
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
    """When it is loaded, with the backend's own choice put in. Raises `SetupError` where it cannot wait, and
    for what would have no effect on this model."""
    _refuse_inert(kind, spec)
    wanted = spec.load or ("start" if spec.pinned else kind.default_load)
    if wanted == "demand" and kind.offers(spec) is None:
        if spec.load is not None:
            raise SetupError(
                f"Model {spec.name!r} cannot be loaded on demand: only when loaded does backend "
                f"{spec.backend!r} know what it offers. Leave 'load' out.",
                param="load",
            )
        return "start"
    return wanted


def _refuse_inert(kind: type[Backend], spec: ModelSpec) -> None:
    for field, is_set in (("pinned", spec.pinned), ("idle_ttl_s", spec.idle_ttl_s is not None)):
        if is_set and kind.remote:
            raise SetupError(
                f"Model {spec.name!r} runs elsewhere, so {field!r} would have no effect on it. Leave it out.",
                param=field,
            )
    if spec.pinned and spec.idle_ttl_s is not None:
        raise SetupError(
            f"Model {spec.name!r} is pinned, so 'idle_ttl_s' would have no effect. Leave one of them out.",
            param="idle_ttl_s",
        )


def _kept_as(spec: ModelSpec, other: ModelSpec) -> ModelSpec:
    """The other one, loaded and kept as `spec` says."""
    return replace(other, load=spec.load, pinned=spec.pinned, idle_ttl_s=spec.idle_ttl_s)


def _unexpected(spec: ModelSpec, error: Exception) -> InternalError:
    _log.error("Model %r could not be loaded", spec.name, exc_info=error)
    return InternalError(
        f"Model {spec.public_name!r} could not be loaded; the log of its worker has the details."
    )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
