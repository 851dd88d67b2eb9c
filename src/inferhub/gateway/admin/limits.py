"""`/admin/v1/limits`: quotas and budgets of tenants, projects and keys, and how full they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import Forbidden, NotFound, StoreFailed
from inferhub.core.quota import Level, Meter, Quota, Reading, Unit, Window
from inferhub.core.tenancy import Principal
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.admin.desk import After, Body, Desk, Limit, act, as_page, cut, find, visible
from inferhub.pipeline.limiter.book import meter_for
from inferhub.stores.catalog.amounts import amount_of, limit_card

Read = Callable[[Sequence[Meter]], Awaitable[Sequence[Reading]]]
"""How full meters are. Raises `StoreFailed`."""


class NewLimit(Body):
    level: Literal["tenant", "project", "key"]
    subject_id: str = Field(description="Id of the tenant, project or key that it binds.")
    unit: Unit = Field(strict=False)
    window: Window = Field(strict=False)
    limit: int | str = Field(description="A whole number; for `usd` an amount as text, such as '12.50'.")
    mode: Literal["auto", "exact", "lease"] = "auto"


def limits_router(desk: Desk, read: Read) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["limits"])

    @router.get("/limits", summary="List limits and budgets, and how full they are")
    async def list_limits(
        caller: Caller,
        tenant_id: str | None = None,
        subject_id: str | None = None,
        after: After = None,
        limit: Limit = 100,
    ) -> Mapping[str, Any]:
        quotas = visible(await desk.catalog.quotas(), caller, tenant_id)
        seen = [quota for quota in quotas if subject_id in (None, quota.subject_id)]
        shown, has_more = cut(seen, after, limit)
        levels = await _levels(read, shown)
        return as_page([_card(quota, levels) for quota in shown], has_more)

    @router.post("/limits", summary="Set a limit or budget; replaces the one of the same kind")
    async def set_limit(body: NewLimit, request: Request, caller: Caller) -> Mapping[str, Any]:
        tenant_id = await _tenant_of(desk, caller, body.level, body.subject_id)
        _check_right(caller, body.level)
        quota = Quota(
            id=new_id("quo"),
            tenant_id=tenant_id,
            level=body.level,
            subject_id=body.subject_id,
            unit=body.unit,
            window=body.window,
            limit=amount_of(body.limit, body.unit),
            mode=body.mode,
            created_at=unix_s(),
        )
        detail = {"subject": body.subject_id, "limit": f"{body.limit} {body.unit} a {body.window}"}
        stored = await desk.catalog.set_quota(
            quota, act(request, caller, "limit.set", quota.id, tenant_id, **detail)
        )
        await desk.refresh()
        return _card(stored, await _levels(read, [stored]))

    @router.get("/limits/{limit_id}", summary="Describe one limit, and how full it is")
    async def get_limit(limit_id: str, caller: Caller) -> Mapping[str, Any]:
        quota = find(await desk.catalog.quotas(), limit_id, caller, "limit")
        return _card(quota, await _levels(read, [quota]))

    @router.delete("/limits/{limit_id}", summary="Remove a limit")
    async def delete_limit(limit_id: str, request: Request, caller: Caller) -> Mapping[str, Any]:
        quota = find(await desk.catalog.quotas(), limit_id, caller, "limit")
        _check_right(caller, quota.level)
        made = act(request, caller, "limit.delete", quota.id, quota.tenant_id, subject=quota.subject_id)
        gone = await desk.catalog.delete_quota(quota.id, made)
        await desk.refresh()
        return {**_card(gone, {}), "deleted": True}

    return router


async def _tenant_of(desk: Desk, caller: Principal, level: Level, subject_id: str) -> str:
    """Whose the subject is. Raises `NotFound` for one that the caller does not see."""
    if level == "tenant":
        known = any(t.id == subject_id for t in await desk.catalog.tenants())
        if not known or not caller.may_see(subject_id):
            raise NotFound(f"There is no tenant {subject_id[:60]!r}.", param="subject_id")
        return subject_id
    if level == "project":
        return find(
            await desk.catalog.projects(), subject_id, caller, "project", param="subject_id"
        ).tenant_id
    return find(await desk.catalog.keys(), subject_id, caller, "API key", param="subject_id").tenant_id


def _check_right(caller: Principal, level: Level) -> None:
    if level == "tenant" and not caller.is_admin:
        raise Forbidden("The limits of a whole tenant are set by a key with the role 'admin'.")


async def _levels(read: Read, quotas: Sequence[Quota]) -> Mapping[str, Reading]:
    """By the meter's key; empty while the counters are away, so that limits can still be seen and set."""
    try:
        readings = await read([meter_for(quota) for quota in quotas])
    except StoreFailed:
        return {}
    return {reading.meter.key: reading for reading in readings}


def _card(quota: Quota, levels: Mapping[str, Reading]) -> Mapping[str, Any]:
    return {"object": "limit", **limit_card(quota, levels.get(meter_for(quota).key))}
