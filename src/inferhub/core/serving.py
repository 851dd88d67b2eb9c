"""Where models run now: the worker's report, and the immutable endpoint that dispatch picks from."""

from __future__ import annotations

from dataclasses import dataclass

from inferhub.core.call import Handler
from inferhub.core.models import ModelStatus


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One memory that models live in, read from the machine."""

    id: str
    """`cpu` or `cuda:N`."""
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself; a whole new record each time, never a patch."""

    id: str
    models: tuple[ModelStatus, ...]
    devices: tuple[DeviceStatus, ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place where one model can be called now."""

    id: str
    """The worker's id, shown to clients as `x-inferhub-upstream`."""
    model: ModelStatus
    infer: Handler
