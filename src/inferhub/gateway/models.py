"""`GET /v1/models`: what can be asked for, with what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter

from inferhub.core.clock import unix_s
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.pipeline.admit import check_model
from inferhub.pipeline.directory import Directory


def models_router(directory: Callable[[], Directory]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["models"])
    created = unix_s()

    def card(name: str, snapshot: Directory) -> Mapping[str, Any]:
        resolved = snapshot.primary(name)
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
    async def list_models(caller: Caller) -> Mapping[str, Any]:
        snapshot = directory()
        names = [name for name in snapshot.names if caller.may_call(name)]
        return {"object": "list", "data": [card(name, snapshot) for name in names]}

    @router.get("/models/{model:path}", summary="Describe one model")
    async def get_model(model: str, caller: Caller) -> Mapping[str, Any]:
        snapshot = directory()
        check_model(caller, model)
        snapshot.check(model, caller.may_call)
        return card(model, snapshot)

    return router
