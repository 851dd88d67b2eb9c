"""`GET /admin/v1/audit`: who changed what. Reading is all that can be done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from inferhub.core.audit import AuditEntry
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.admin.desk import Desk, Limit, tenant_for


def audit_router(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["audit"])

    @router.get("/audit", summary="The audit log, newest first")
    async def list_acts(
        caller: Caller,
        tenant_id: str | None = None,
        before: Annotated[int | None, Query(ge=1, description="`seq` of the last row before.")] = None,
        limit: Limit = 100,
    ) -> Mapping[str, Any]:
        whose = tenant_id if caller.is_admin else tenant_for(caller, tenant_id)
        shown = await desk.catalog.audit(tenant_id=whose, before_seq=before, limit=limit)
        last = shown[-1].seq if len(shown) == limit else 0
        has_more = last > 1 and bool(await desk.catalog.audit(tenant_id=whose, before_seq=last, limit=1))
        return {
            "object": "list",
            "data": [_card(entry) for entry in shown],
            "has_more": has_more,
            "next_before": last if has_more else None,
        }

    return router


def _card(entry: AuditEntry) -> Mapping[str, Any]:
    return {
        "object": "audit_entry",
        "seq": entry.seq,
        "at": entry.at,
        "actor": entry.act.actor,
        "action": entry.act.action,
        "target": entry.act.target,
        "tenant_id": entry.act.tenant_id,
        "detail": dict(entry.act.detail),
        "request_id": entry.act.request_id,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }
