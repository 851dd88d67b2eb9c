"""`/admin/v1/keys`: create, list, rotate with overlap, revoke. A key's secret is in one answer only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from inferhub.core.clock import unix_s
from inferhub.core.tenancy import ApiKey, Principal, Role
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.gateway.admin.desk import (
    After,
    Body,
    Desk,
    Limit,
    act,
    check_granting,
    find,
    keep_private,
    page,
    visible,
)
from inferhub.stores.catalog.keys import effective_scopes, issue, reissue

DAY_S = 24 * 3600


class NewKey(Body):
    name: str
    role: Role = Field(Role.ENTERPRISE, strict=False)
    tenant_id: str | None = None
    project_id: str | None = Field(None, description="The caller's own where it is left out.")
    scopes: list[str] | None = Field(None, max_length=50, description="Fewer than the role's.")
    models: list[str] | None = Field(
        None, max_length=100, description="Names that may be called; `llama-*` for all that begin so."
    )
    expires_at: int | None = Field(None, description="Unix seconds.")


class Rotation(Body):
    overlap_s: int = Field(
        DAY_S, ge=0, le=90 * DAY_S, description="How long the old key works beside the new one."
    )
    expires_at: int | None = Field(None, description="Unix seconds; the old key's where it is left out.")


def keys_router(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["keys"])

    @router.get("/keys", summary="List the API keys")
    async def list_keys(
        caller: Caller,
        tenant_id: str | None = None,
        project_id: str | None = None,
        after: After = None,
        limit: Limit = 100,
    ) -> Mapping[str, Any]:
        keys = visible(await desk.catalog.keys(), caller, tenant_id)
        return page([k for k in keys if project_id in (None, k.project_id)], card, after, limit)

    @router.post("/keys", summary="Create an API key; its secret is shown this once", status_code=201)
    async def create_key(
        body: NewKey, request: Request, response: Response, caller: Caller
    ) -> Mapping[str, Any]:
        project = await desk.home(caller, body.tenant_id, body.project_id)
        plaintext, key = issue(
            body.name,
            body.role,
            desk.pepper,
            tenant_id=project.tenant_id,
            project_id=project.id,
            scopes=body.scopes,
            models=body.models,
            expires_at=body.expires_at,
        )
        _check_right(caller, "create a key", key)
        made = act(request, caller, "key.create", key.id, key.tenant_id, name=key.name, role=key.role.value)
        await desk.catalog.create_key(key, made)
        await desk.refresh()
        keep_private(response)
        return {**card(key), "key": plaintext}

    @router.get("/keys/{key_id}", summary="Describe one API key")
    async def get_key(key_id: str, caller: Caller) -> Mapping[str, Any]:
        return card(find(await desk.catalog.keys(), key_id, caller, "API key"))

    @router.delete("/keys/{key_id}", summary="Revoke an API key for good")
    async def revoke_key(key_id: str, request: Request, caller: Caller) -> Mapping[str, Any]:
        key = find(await desk.catalog.keys(), key_id, caller, "API key")
        _check_right(caller, "revoke a key", key)
        made = act(request, caller, "key.revoke", key.id, key.tenant_id, name=key.name)
        revoked = await desk.catalog.revoke_key(key.id, made)
        await desk.refresh()
        return card(revoked)

    @router.post("/keys/{key_id}/rotate", summary="Replace an API key; the old one works on for a while")
    async def rotate_key(
        key_id: str, request: Request, response: Response, caller: Caller, body: Rotation | None = None
    ) -> Mapping[str, Any]:
        old = find(await desk.catalog.keys(), key_id, caller, "API key")
        _check_right(caller, "rotate a key", old)
        now, wanted = unix_s(), body or Rotation.model_validate({})
        until = now + wanted.overlap_s
        ends_at = wanted.expires_at if wanted.expires_at is not None else old.expires_at
        # The catalog refuses a key that has expired, and says so better.
        is_over = old.expires_at is not None and old.expires_at <= now
        plaintext, new = reissue(old, desk.pepper, expires_at=None if is_over else ends_at)
        made = act(
            request, caller, "key.rotate", old.id, old.tenant_id, successor=new.id, expires_at=str(until)
        )
        old = await desk.catalog.rotate_key(old.id, new, until, made)
        await desk.refresh()
        keep_private(response)
        return {**card(new), "key": plaintext, "replaces": card(old)}

    return router


def _check_right(caller: Principal, what: str, key: ApiKey) -> None:
    check_granting(caller, what, key.role, effective_scopes(key.role, key.scopes), key.models)


def card(key: ApiKey) -> Mapping[str, Any]:
    """Everything but the digest."""
    return {
        "object": "api_key",
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "tenant_id": key.tenant_id,
        "project_id": key.project_id,
        "scopes": sorted(effective_scopes(key.role, key.scopes)),
        "models": None if key.models is None else sorted(key.models),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "rotated_to": key.rotated_to,
        "last_used_at": key.last_used_at,
    }
