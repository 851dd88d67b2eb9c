"""`GET /v1/models`: what can be asked for, with what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, Depends

from inferhub.core.clock import unix_s
from inferhub.core.errors import ModelNotFound
from inferhub.gateway.dependencies import known_caller
from inferhub.pipeline.directory import Directory


def models_router(directory: Callable[[], Directory]) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"], dependencies=[Depends(known_caller)])
    created = unix_s()

    def card(name: str, snapshot: Directory) -> Mapping[str, Any]:
        resolved = snapshot.routes.get(name, name)
        endpoints = snapshot.endpoints.get(resolved, ())
        detail: dict[str, Any] = {"model": resolved, "ready": bool(endpoints), "endpoints": len(endpoints)}
        if endpoints:
            status = endpoints[0].model
            detail |= {
                "backend": status.spec.backend,
                "device": status.device,
                "capabilities": [
                    {
                        "modality": c.modality,
                        "features": sorted(c.features),
                        "context_tokens": c.context_tokens,
                        "dimensions": c.dimensions,
                    }
                    for c in status.capabilities
                ],
            }
        return {"id": name, "object": "model", "created": created, "owned_by": "inferhub", "inferhub": detail}

    @router.get("/models", summary="List the models")
    async def list_models() -> Mapping[str, Any]:
        snapshot = directory()
        return {"object": "list", "data": [card(name, snapshot) for name in snapshot.names]}

    @router.get("/models/{model:path}", summary="Describe one model")
    async def get_model(model: str) -> Mapping[str, Any]:
        snapshot = directory()
        if model not in snapshot.names:
            # Raises with the nearest name; a known model without endpoint is still described.
            snapshot.resolve(model)
            raise ModelNotFound
        return card(model, snapshot)

    return router
