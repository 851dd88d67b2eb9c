"""`GET /v1/models`: what can be asked for, with what it can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter

from inferhub.core.clock import unix_s
from inferhub.core.models import ModelStatus
from inferhub.core.traffic import Route
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.pipeline.admit import check_model
from inferhub.pipeline.directory import Directory


def models_router(directory: Callable[[], Directory]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["models"])
    created = unix_s()

    def card(name: str, snapshot: Directory, may_call: Callable[[str], bool]) -> Mapping[str, Any]:
        detail = describe(name, snapshot, may_call)
        return {"id": name, "object": "model", "created": created, "owned_by": "inferhub", "inferhub": detail}

    @router.get("/models", summary="List the models")
    async def list_models(caller: Caller) -> Mapping[str, Any]:
        snapshot = directory()
        names = [name for name in snapshot.names if caller.may_call(name)]
        return {"object": "list", "data": [card(name, snapshot, caller.may_call) for name in names]}

    @router.get("/models/{model:path}", summary="Describe one model")
    async def get_model(model: str, caller: Caller) -> Mapping[str, Any]:
        snapshot = directory()
        check_model(caller, model)
        snapshot.check(model, caller.may_call)
        return card(model, snapshot, caller.may_call)

    return router


def describe(name: str, snapshot: Directory, may_call: Callable[[str], bool]) -> dict[str, Any]:
    """Of the models behind a route, only those are named that the caller may ask for by name."""
    models = snapshot.models_of(name)
    shown = [model for model in models if model == name or may_call(model)]
    endpoints = [endpoint for model in models for endpoint in snapshot.endpoints.get(model, ())]
    detail: dict[str, Any] = {
        "model": shown[0] if shown else None,
        "ready": bool(endpoints),
        "endpoints": len(endpoints),
    }
    if name in snapshot.routes:
        detail["route"] = _route(snapshot.routes[name], frozenset(shown))
    if endpoints:
        status = endpoints[0].model
        if next(model for model in models if snapshot.endpoints.get(model)) in shown:
            detail |= {"backend": status.spec.backend, "device": status.device}
            detail |= memory_card([endpoint.model for endpoint in endpoints])
        detail["capabilities"] = [
            {
                "modality": c.modality,
                "features": sorted(c.features),
                "context_tokens": c.context_tokens,
                "dimensions": c.dimensions,
            }
            for c in status.capabilities
        ]
    return detail


def memory_card(models: Sequence[ModelStatus]) -> dict[str, Any]:
    """Whether a model is in memory, over all places where it runs."""
    return {
        "load": models[0].spec.load or "start",
        "loaded": any(model.loaded for model in models),
        "memory_bytes": sum(model.memory_bytes for model in models),
    }


def _route(route: Route, shown: frozenset[str]) -> Mapping[str, Any]:
    return {
        "prefer": route.prefer,
        "targets": [
            {"model": target.model, "weight": target.weight, "priority": target.priority}
            for target in route.targets
            if target.model in shown
        ],
        "fallbacks": [
            {"model": fallback.model, "on": sorted(fallback.on)}
            for fallback in route.fallbacks
            if fallback.model in shown
        ],
    }
