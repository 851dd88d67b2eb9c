"""`/admin/v1/decisions/{request_id}`: why a call went where it went, as far as this process remembers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path

from inferhub.core.errors import NotFound
from inferhub.gateway.access import GuardedRoute
from inferhub.routing import Decisions
from inferhub.routing.decisions import MAX_CALLS

RequestId = Annotated[str, Path(max_length=200, description="The `x-request-id` of the call's answer.")]


def decisions_router(decisions: Decisions) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["admin"])

    @router.get("/decisions/{request_id}", summary="Explain where a call went")
    async def explain(request_id: RequestId) -> Mapping[str, Any]:
        found = decisions.of(request_id)
        if not found:
            raise NotFound(
                f"This gateway process remembers no call {request_id[:60]!r}. It keeps the last {MAX_CALLS} "
                "that reached its scheduler, which one that was refused or answered from the cache did not.",
                param="request_id",
            )
        return {"object": "list", "process": os.getpid(), "data": found}

    return router
