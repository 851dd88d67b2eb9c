"""Models, workers and the fleet to protobuf and back, wherever they travel. Pure: no I/O.

Decoding believes nothing: who registers decides what can be true. It only keeps types and sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import msgspec

from inferhub.core.errors import Invalid
from inferhub.core.fleet import Deployment, Member, Placement
from inferhub.core.models import Capability, Load, ModelSpec, ModelStatus, Voice
from inferhub.core.serving import MOVING, Beat, DeviceStatus, Pulse, WorkerStatus
from inferhub.transport._pb import orchestrator_pb2 as fleet_pb
from inferhub.transport._pb import worker_pb2 as pb

_encode_json = msgspec.json.Encoder().encode

_LOADS: dict[str, Load] = {"start": "start", "demand": "demand"}


MAX_OPTIONS_BYTES = 256 * 1024
"""Of one model: whoever follows the fleet is told those of every model."""


def encode_spec(spec: ModelSpec) -> pb.ModelSpec:
    return pb.ModelSpec(
        name=spec.name,
        backend=spec.backend,
        weights=spec.weights,
        device=spec.device,
        slots=spec.slots,
        queue_limit=spec.queue_limit,
        options=_encode_json(dict(spec.options)),
        load=spec.load or "",
        pinned=spec.pinned,
        idle_ttl_s=spec.idle_ttl_s,
        max_batch=spec.max_batch,
    )


def decode_spec(message: pb.ModelSpec) -> ModelSpec:
    if len(message.options) > MAX_OPTIONS_BYTES:
        raise Invalid(
            f"The options of model {message.name!r:.120} take {len(message.options)} bytes; "
            f"{MAX_OPTIONS_BYTES} are allowed."
        )
    try:
        options = msgspec.json.decode(message.options or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Invalid(f"The options of model {message.name!r:.120} cannot be read: {error}") from error
    return ModelSpec(
        name=message.name,
        backend=message.backend,
        weights=message.weights if message.HasField("weights") else None,
        device=message.device,
        slots=message.slots,
        queue_limit=message.queue_limit,
        options=options,
        load=_LOADS.get(message.load),
        pinned=message.pinned,
        idle_ttl_s=message.idle_ttl_s if message.HasField("idle_ttl_s") else None,
        max_batch=message.max_batch,
    )


def encode_model(model: ModelStatus) -> pb.ModelStatus:
    return pb.ModelStatus(
        spec=encode_spec(model.spec),
        capabilities=[
            pb.Capability(
                modality=c.modality,
                features=sorted(c.features),
                context_tokens=c.context_tokens,
                dimensions=c.dimensions,
                voices=[
                    pb.Voice(id=v.id, language=v.language, gender=v.gender, aliases=v.aliases)
                    for v in c.voices
                ],
            )
            for c in model.capabilities
        ],
        device=model.device,
        **{name: getattr(model, name) for name in MOVING},
    )


def decode_model(message: pb.ModelStatus) -> ModelStatus:
    return ModelStatus(
        spec=decode_spec(message.spec),
        capabilities=tuple(
            Capability(
                modality=c.modality,
                features=frozenset(c.features),
                context_tokens=c.context_tokens if c.HasField("context_tokens") else None,
                dimensions=c.dimensions if c.HasField("dimensions") else None,
                voices=tuple(_voice(v) for v in c.voices),
            )
            for c in message.capabilities
        ),
        device=message.device,
        **_moving(message),
    )


def _voice(message: pb.Voice) -> Voice:
    gender = message.gender if message.gender in ("female", "male") else "neutral"
    known = cast("Literal['female', 'male', 'neutral']", gender)
    return Voice(message.id, message.language, known, tuple(message.aliases))


def encode_worker(worker: WorkerStatus) -> pb.WorkerStatus:
    return pb.WorkerStatus(
        id=worker.id,
        models=[encode_model(model) for model in worker.models],
        devices=[
            pb.DeviceStatus(
                id=d.id,
                name=d.name,
                memory_total_bytes=d.memory_total_bytes,
                memory_free_bytes=d.memory_free_bytes,
            )
            for d in worker.devices
        ],
        draining=worker.draining,
        address=worker.address,
        incarnation=worker.incarnation,
        seq=worker.seq,
        at_s=worker.at_s,
        labels=worker.labels,
        version=worker.version,
    )


def decode_worker(message: pb.WorkerStatus) -> WorkerStatus:
    return WorkerStatus(
        id=message.id,
        models=tuple(decode_model(model) for model in message.models),
        devices=tuple(
            DeviceStatus(d.id, d.name, d.memory_total_bytes, d.memory_free_bytes) for d in message.devices
        ),
        draining=message.draining,
        address=message.address,
        incarnation=message.incarnation,
        seq=message.seq,
        at_s=message.at_s,
        labels=dict(message.labels),
        version=message.version,
    )


def _moving(message: pb.ModelStatus | fleet_pb.Pulse) -> dict[str, Any]:
    figures = {name: getattr(message, name) for name in MOVING}
    figures["prefixes"] = tuple(message.prefixes)
    return figures


# --- the fleet ---------------------------------------------------------------------------------


def encode_beat(beat: Beat) -> fleet_pb.Beat:
    return fleet_pb.Beat(
        id=beat.id,
        incarnation=beat.incarnation,
        seq=beat.seq,
        at_s=beat.at_s,
        draining=beat.draining,
        pulses=[
            fleet_pb.Pulse(model=pulse.model, **{name: getattr(pulse, name) for name in MOVING})
            for pulse in beat.pulses
        ],
        memory_free_bytes=beat.memory_free_bytes,
    )


def decode_beat(message: fleet_pb.Beat) -> Beat:
    return Beat(
        id=message.id,
        incarnation=message.incarnation,
        seq=message.seq,
        at_s=message.at_s,
        draining=message.draining,
        pulses=tuple(Pulse(model=pulse.model, **_moving(pulse)) for pulse in message.pulses),
        memory_free_bytes=tuple(message.memory_free_bytes),
    )


def encode_deployments(deployments: Iterable[Deployment]) -> list[fleet_pb.Deployment]:
    return [
        fleet_pb.Deployment(
            spec=encode_spec(d.spec), replicas=d.placement.replicas, labels=d.placement.labels
        )
        for d in deployments
    ]


def decode_deployments(messages: Iterable[fleet_pb.Deployment]) -> tuple[Deployment, ...]:
    return tuple(Deployment(decode_spec(m.spec), Placement(m.replicas, dict(m.labels))) for m in messages)


def encode_member(member: Member) -> fleet_pb.Member:
    """Without `is_suspect`, which every step says of all members together."""
    return fleet_pb.Member(worker=encode_worker(member.worker))
