"""`/admin/v1/workers`: every worker's models, load, devices and free memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from inferhub.core.fleet import Member
from inferhub.core.models import ModelStatus
from inferhub.gateway.access import GuardedRoute
from inferhub.gateway.models import memory_card


def workers_router(workers: Callable[[], Mapping[str, Member | None]]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["admin"])

    @router.get("/workers", summary="List the workers")
    async def list_workers() -> Mapping[str, Any]:
        return {"object": "list", "data": [_card(name, member) for name, member in workers().items()]}

    return router


def _card(name: str, member: Member | None) -> Mapping[str, Any]:
    if member is None:
        return {"name": name, "reachable": False}
    worker = member.worker
    return {
        "name": name,
        "reachable": True,
        "id": worker.id,
        "address": worker.address,
        "version": worker.version,
        "labels": dict(worker.labels),
        "suspect": member.is_suspect,
        "draining": worker.draining,
        # Options are left out: they may hold an upstream's key.
        "models": [_model(model) for model in worker.models],
        "devices": [
            {
                "id": device.id,
                "name": device.name,
                "memory_total_bytes": device.memory_total_bytes,
                "memory_free_bytes": device.memory_free_bytes,
            }
            for device in worker.devices
        ],
    }


def state_of(model: ModelStatus) -> str:
    """In one word, as `docs/explanation/model-lifecycle.md` draws it."""
    if not model.ready and not model.loading:
        return "not ready"
    if model.loaded:
        return "loaded"
    if model.loading:
        return "loading"
    return "leaving" if model.memory_bytes else "unloaded"


def _model(model: ModelStatus) -> Mapping[str, Any]:
    return {
        "name": model.spec.public_name,
        "backend": model.spec.backend,
        "device": model.device,
        "slots": model.spec.slots,
        "running": model.running,
        "queued": model.queued,
        "pending_s": round(model.pending_s, 3),
        "ready": model.ready,
        "loading": model.loading,
        "state": state_of(model),
        "pinned": model.spec.pinned,
        **memory_card([model]),
        "modalities": {c.modality: sorted(c.features) for c in model.capabilities},
    }
