"""`/admin/v1/tenants`, `…/projects` and `…/users`: who there is, kept apart from each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import Forbidden, Invalid
from inferhub.core.tenancy import ROLE_SCOPES, Issuer, Principal, Project, Role, Tenant, User
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
    no_tenant,
    page,
    tenant_for,
    visible,
)
from inferhub.gateway.webhooks import MAX_CHARS, seal, unseal, webhook_secret

CheckUrl = Callable[[str], object]
"""Raises `InferHubError` for an address that no webhook may have."""


class NewTenant(Body):
    name: str
    webhook_url: str | None = None


class ChangedTenant(Body):
    name: str | None = None
    webhook_url: str | None = Field(None, description="Empty text removes it.")
    disabled: bool | None = None


class NewProject(Body):
    name: str
    tenant_id: str | None = None


class ChangedProject(Body):
    name: str | None = None
    disabled: bool | None = None


class NewUser(Body):
    issuer: str
    subject: str
    name: str
    role: Role = Field(Role.ENTERPRISE, strict=False)
    tenant_id: str | None = None
    project_id: str | None = None


class ChangedUser(Body):
    name: str | None = None
    role: Role | None = Field(None, strict=False)
    disabled: bool | None = None


def tenants_router(desk: Desk, check_url: CheckUrl) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["tenants"])

    card = partial(_tenant_card, desk.pepper)

    async def one(tenant_id: str, caller: Principal) -> Tenant:
        for tenant in await desk.catalog.tenants():
            if tenant.id == tenant_id and caller.may_see(tenant_id):
                return tenant
        raise no_tenant(tenant_id)

    @router.get("/tenants", summary="List the tenants")
    async def list_tenants(caller: Caller, after: After = None, limit: Limit = 100) -> Mapping[str, Any]:
        seen = [tenant for tenant in await desk.catalog.tenants() if caller.may_see(tenant.id)]
        return page(seen, card, after, limit)

    @router.post("/tenants", summary="Create a tenant, with a first project", status_code=201)
    async def create_tenant(
        body: NewTenant, request: Request, response: Response, caller: Caller
    ) -> Mapping[str, Any]:
        tenant_id = new_id("ten")
        webhook = None if body.webhook_url is None else _sealed(body.webhook_url, desk, check_url, tenant_id)
        tenant = Tenant(tenant_id, body.name, unix_s(), None, webhook)
        made = act(request, caller, "tenant.create", tenant.id, tenant.id, name=tenant.name)
        await desk.catalog.create_tenant(tenant, made)
        project = Project(new_id("prj"), tenant.id, "default", tenant.created_at)
        made = act(request, caller, "project.create", project.id, tenant.id, name=project.name)
        await desk.catalog.create_project(project, made)
        await desk.refresh()
        return {
            **card(tenant),
            "project_id": project.id,
            **_secret(desk, body.webhook_url, tenant.id, response),
        }

    @router.get("/tenants/{tenant_id}", summary="Describe one tenant")
    async def get_tenant(tenant_id: str, caller: Caller) -> Mapping[str, Any]:
        return card(await one(tenant_id, caller))

    @router.patch("/tenants/{tenant_id}", summary="Rename, disable, or set the webhook of a tenant")
    async def change_tenant(
        tenant_id: str, body: ChangedTenant, request: Request, response: Response, caller: Caller
    ) -> Mapping[str, Any]:
        tenant = await one(tenant_id, caller)
        # Names are unique over all tenants: whoever may try them out learns who else is here.
        if (body.name, body.disabled) != (None, None) and not caller.is_admin:
            raise Forbidden("Only a key with the role 'admin' renames, disables or enables a tenant.")
        webhook = tenant.webhook_url
        if body.webhook_url is not None:
            webhook = _sealed(body.webhook_url, desk, check_url, tenant.id) if body.webhook_url else None
        changed = replace(
            tenant,
            name=tenant.name if body.name is None else body.name,
            disabled_at=_switched(tenant.disabled_at, body.disabled),
            webhook_url=webhook,
        )
        made = act(request, caller, "tenant.change", tenant.id, tenant.id, **_said(body))
        await desk.catalog.replace_tenant(changed, made)
        await desk.refresh()
        return {**card(changed), **_secret(desk, body.webhook_url, tenant.id, response)}

    return router


def projects_router(desk: Desk) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["tenants"])

    @router.get("/projects", summary="List the projects")
    async def list_projects(
        caller: Caller, tenant_id: str | None = None, after: After = None, limit: Limit = 100
    ) -> Mapping[str, Any]:
        return page(visible(await desk.catalog.projects(), caller, tenant_id), _card, after, limit)

    @router.post("/projects", summary="Create a project", status_code=201)
    async def create_project(body: NewProject, request: Request, caller: Caller) -> Mapping[str, Any]:
        project = Project(new_id("prj"), tenant_for(caller, body.tenant_id), body.name, unix_s())
        made = act(request, caller, "project.create", project.id, project.tenant_id, name=project.name)
        await desk.catalog.create_project(project, made)
        await desk.refresh()
        return _card(project)

    @router.get("/projects/{project_id}", summary="Describe one project")
    async def get_project(project_id: str, caller: Caller) -> Mapping[str, Any]:
        return _card(await desk.project(project_id, caller))

    @router.patch("/projects/{project_id}", summary="Rename or disable a project")
    async def change_project(
        project_id: str, body: ChangedProject, request: Request, caller: Caller
    ) -> Mapping[str, Any]:
        project = await desk.project(project_id, caller)
        changed = replace(
            project,
            name=project.name if body.name is None else body.name,
            disabled_at=_switched(project.disabled_at, body.disabled),
        )
        made = act(request, caller, "project.change", project.id, project.tenant_id, **_said(body))
        await desk.catalog.replace_project(changed, made)
        await desk.refresh()
        return _card(changed)

    return router


def users_router(desk: Desk, issuers: Callable[[], Sequence[Issuer]]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/admin/v1", tags=["tenants"])

    @router.get("/users", summary="List the users")
    async def list_users(
        caller: Caller, tenant_id: str | None = None, after: After = None, limit: Limit = 100
    ) -> Mapping[str, Any]:
        return page(visible(await desk.catalog.users(), caller, tenant_id), _card, after, limit)

    @router.post("/users", summary="Create a user of an OIDC issuer", status_code=201)
    async def create_user(body: NewUser, request: Request, caller: Caller) -> Mapping[str, Any]:
        project = await desk.home(caller, body.tenant_id, body.project_id)
        check_granting(caller, "create a user", body.role, ROLE_SCOPES[body.role])
        _check_issuer(caller, body.issuer, issuers())
        user = User(
            id=new_id("usr"),
            tenant_id=project.tenant_id,
            project_id=project.id,
            issuer=body.issuer,
            subject=body.subject,
            name=body.name,
            role=body.role,
            created_at=unix_s(),
        )
        detail = {"name": user.name, "role": user.role.value}
        made = act(request, caller, "user.create", user.id, user.tenant_id, **detail)
        await desk.catalog.create_user(user, made)
        await desk.refresh()
        return _card(user)

    @router.get("/users/{user_id}", summary="Describe one user")
    async def get_user(user_id: str, caller: Caller) -> Mapping[str, Any]:
        return _card(find(await desk.catalog.users(), user_id, caller, "user"))

    @router.patch("/users/{user_id}", summary="Rename or disable a user, or change the role")
    async def change_user(
        user_id: str, body: ChangedUser, request: Request, caller: Caller
    ) -> Mapping[str, Any]:
        user = find(await desk.catalog.users(), user_id, caller, "user")
        for role in (user.role, body.role or user.role):
            check_granting(caller, "change a user", role, ROLE_SCOPES[role])
        changed = replace(
            user,
            name=user.name if body.name is None else body.name,
            role=user.role if body.role is None else body.role,
            disabled_at=_switched(user.disabled_at, body.disabled),
        )
        made = act(request, caller, "user.change", user.id, user.tenant_id, **_said(body))
        await desk.catalog.replace_user(changed, made)
        await desk.refresh()
        return _card(changed)

    return router


def _check_issuer(caller: Principal, issuer: str, known: Sequence[Issuer]) -> None:
    """A tenant admits people of its own issuers: else it could take another tenant's people over."""
    if not caller.is_admin and (issuer, caller.tenant_id) not in {(i.issuer, i.tenant_id) for i in known}:
        raise Forbidden(
            f"{issuer[:100]!r} is no issuer of your tenant; a key with the role 'admin' can add its users.",
            param="issuer",
        )


def _sealed(url: str, desk: Desk, check_url: CheckUrl, tenant_id: str) -> str:
    """A webhook's address as the catalog keeps it. Raises `EgressRefused` or `Invalid`."""
    check_url(url)
    if len(url) > MAX_CHARS:
        raise Invalid(f"A webhook's address has at most {MAX_CHARS} characters.", param="webhook_url")
    return seal(url, desk.pepper, tenant_id)


def _tenant_card(pepper: bytes, tenant: Tenant) -> Mapping[str, Any]:
    webhook = tenant.webhook_url and unseal(tenant.webhook_url, pepper, tenant.id)
    return {**_card(tenant), "webhook_url": webhook}


def _secret(desk: Desk, webhook_url: str | None, tenant_id: str, response: Response) -> Mapping[str, str]:
    """To whoever sets a webhook: what its messages are signed with."""
    if not webhook_url:
        return {}
    keep_private(response)
    return {"webhook_secret": webhook_secret(desk.pepper, tenant_id)}


def _switched(disabled_at: int | None, wanted: bool | None) -> int | None:
    if wanted is None:
        return disabled_at
    return (disabled_at or unix_s()) if wanted else None


def _said(body: Body) -> dict[str, str]:
    """What a change asked for, as the audit log keeps it. A webhook's address may hold a token."""
    given = body.model_dump(exclude_unset=True, mode="json")
    return {name: "changed" if name == "webhook_url" else str(value)[:200] for name, value in given.items()}


def _card(record: Tenant | Project | User) -> Mapping[str, Any]:
    kind = type(record).__name__.lower()
    return {"object": kind, **asdict(record)}
