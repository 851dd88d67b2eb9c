"""`/admin/v1/workers`: every worker's models, load, devices and free memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from inferhub.core.serving import WorkerStatus
from inferhub.gateway.access import GuardedRoute
from inferhub.gateway.models import memory_card


def workers_router(workers: Callable[[], Mapping[str, WorkerStatus | None]]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["admin"])

    @router.get("/workers", summary="List the workers")
    async def list_workers() -> Mapping[str, Any]:
        return {"object": "list", "data": [_card(name, status) for name, status in workers().items()]}

    return router


def _card(name: str, status: WorkerStatus | None) -> Mapping[str, Any]:
    if status is None:
        return {"name": name, "reachable": False}
    return {
        "name": name,
        "reachable": True,
        "id": status.id,
        "draining": status.draining,
        # Options are left out: they may hold an upstream's key.
        "models": [
            {
                "name": model.spec.public_name,
                "backend": model.spec.backend,
                "device": model.device,
                "slots": model.spec.slots,
                "running": model.running,
                "queued": model.queued,
                "ready": model.ready,
                **memory_card([model]),
                "modalities": {c.modality: sorted(c.features) for c in model.capabilities},
            }
            for model in status.models
        ],
        "devices": [
            {
                "id": device.id,
                "name": device.name,
                "memory_total_bytes": device.memory_total_bytes,
                "memory_free_bytes": device.memory_free_bytes,
            }
            for device in status.devices
        ],
    }
