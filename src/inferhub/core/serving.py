"""Where models run now: what a worker says of itself, and the immutable endpoint that dispatch picks from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
    """What a worker says of itself: all of it. Between two of them, beats bring the figures up to date."""

    id: str
    models: tuple[ModelStatus, ...]
    devices: tuple[DeviceStatus, ...] = ()
    draining: bool = False
    address: str = ""
    """Where it is reached: `HOST:PORT`, `unix:PATH`, or a name that only its own process knows."""
    incarnation: int = 0
    """Which life of this id: Unix milliseconds of its start. A later life replaces an earlier one."""
    seq: int = 0
    """Of this report, among all of its life; one that does not rise is old or a replay."""
    at_s: float = 0.0
    """When it was made, on the worker's own monotonic clock: only differences mean anything."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What models and gateways may ask for, such as `gpu`, `region`."""
    version: str = ""
    """The release that it runs."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """The moving figures of one model, as a beat carries them; the fields are those of `ModelStatus`."""

    model: str
    running: int
    queued: int
    ready: bool
    loaded: bool
    loading: bool
    memory_bytes: int
    pending_cost: float
    s_per_cost: float
    prefixes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat: what has changed since a worker registered, small enough for every second."""

    id: str
    incarnation: int
    seq: int
    at_s: float
    draining: bool
    pulses: tuple[Pulse, ...]
    """One for each model it had when it registered, in that order; another set of models registers anew."""
    memory_free_bytes: tuple[int, ...] = ()
    """Of each device, in the order of `WorkerStatus.devices`."""


def beat_of(worker: WorkerStatus) -> Beat:
    return Beat(
        worker.id,
        worker.incarnation,
        worker.seq,
        worker.at_s,
        worker.draining,
        tuple(Pulse(m.spec.name, *(getattr(m, name) for name in MOVING)) for m in worker.models),
        tuple(device.memory_free_bytes for device in worker.devices),
    )


def after(worker: WorkerStatus, beat: Beat) -> WorkerStatus:
    """The worker as its beat says. Raises `ValueError` where the beat belongs to another set of models."""
    models = tuple(_moved(model, pulse) for model, pulse in zip(worker.models, beat.pulses, strict=True))
    devices = worker.devices
    if beat.memory_free_bytes:
        free = zip(devices, beat.memory_free_bytes, strict=True)
        devices = tuple(replace(device, memory_free_bytes=bytes_) for device, bytes_ in free)
    return replace(
        worker, models=models, devices=devices, draining=beat.draining, seq=beat.seq, at_s=beat.at_s
    )


def alike(worker: WorkerStatus, later: WorkerStatus) -> bool:
    """Whether a beat says all that is different between two records of one life."""
    return (
        (worker.id, worker.incarnation, worker.address, worker.version, worker.labels)
        == (later.id, later.incarnation, later.address, later.version, later.labels)
        and [_lasting(model) for model in worker.models] == [_lasting(model) for model in later.models]
        and [_unit(device) for device in worker.devices] == [_unit(device) for device in later.devices]
    )


def _lasting(model: ModelStatus) -> tuple[object, ...]:
    return model.spec, model.capabilities, model.device


def _unit(device: DeviceStatus) -> tuple[object, ...]:
    return device.id, device.name, device.memory_total_bytes


MOVING = (
    "running", "queued", "ready", "loaded", "loading", "memory_bytes", "pending_cost", "s_per_cost",
    "prefixes",
)  # fmt: skip


def _moved(model: ModelStatus, pulse: Pulse) -> ModelStatus:
    if model.spec.name != pulse.model:
        raise ValueError("the beat is of another set of models")
    return replace(model, **{name: getattr(pulse, name) for name in MOVING})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place where one model can be called now."""

    id: str
    """The worker's id, shown to clients as `x-inferhub-upstream`."""
    model: ModelStatus
    infer: Handler
    is_suspect: bool = False
    """Its worker has missed heartbeats: asked where nobody better is there."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of its worker."""
    memory_used_share: float | None = None
    """Of the device that the model is on, from 0 to 1; None where it is not known."""
    report: tuple[int, int] = (0, 0)
    """Incarnation and sequence of the worker's report that this is from: one that was seen before says
    nothing new. Zeros: every other object is another report."""
