"""Tenants, projects and users."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncConnection

from inferhub.core.audit import Act
from inferhub.core.errors import Conflict, NotFound
from inferhub.core.tenancy import DEFAULT_PROJECT, DEFAULT_TENANT, Project, Tenant, User
from inferhub.stores.catalog import base
from inferhub.stores.catalog.checks import check_project, check_tenant, check_user
from inferhub.stores.catalog.sql import rows
from inferhub.stores.catalog.sql.session import Session, add, change, check_exists, check_room
from inferhub.stores.catalog.tables import projects, tenants, users


class Tenancy(Session):
    async def create_tenant(self, tenant: Tenant, act: Act) -> None:
        check_tenant(tenant)
        async with self._write(act) as connection:
            await check_room(connection, tenants, base.MAX_TENANTS, "tenants")
            row = _tenant_row(tenant) | {"id": tenant.id, "created_at": tenant.created_at}
            await add(connection, tenants, row, _tenant_taken(tenant))

    async def replace_tenant(self, tenant: Tenant, act: Act) -> None:
        check_tenant(tenant)
        _refuse_to_disable_default(tenant, DEFAULT_TENANT)
        async with self._write(act) as connection:
            errors = missing("tenant", tenant.id), _tenant_taken(tenant)
            await change(connection, tenants, tenants.c.id == tenant.id, _tenant_row(tenant), errors)

    async def tenants(self) -> tuple[Tenant, ...]:
        query = select(tenants).order_by(tenants.c.created_at, tenants.c.id)
        return tuple(map(rows.tenant, await self._rows(query)))

    async def create_project(self, project: Project, act: Act) -> None:
        check_project(project)
        async with self._write(act) as connection:
            await check_room(connection, projects, base.MAX_PROJECTS, "projects")
            await check_tenant_exists(connection, project.tenant_id)
            row = _project_row(project) | {
                "id": project.id,
                "tenant_id": project.tenant_id,
                "created_at": project.created_at,
            }
            await add(connection, projects, row, _project_taken(project))

    async def replace_project(self, project: Project, act: Act) -> None:
        check_project(project)
        _refuse_to_disable_default(project, DEFAULT_PROJECT)
        async with self._write(act) as connection:
            errors = missing("project", project.id), _project_taken(project)
            where = is_project_of(project.tenant_id, project.id)
            await change(connection, projects, where, _project_row(project), errors)

    async def projects(self) -> tuple[Project, ...]:
        query = select(projects).order_by(projects.c.created_at, projects.c.id)
        return tuple(map(rows.project, await self._rows(query)))

    async def create_user(self, user: User, act: Act) -> None:
        check_user(user)
        async with self._write(act) as connection:
            await check_room(connection, users, base.MAX_USERS, "users")
            await check_project_exists(connection, user.tenant_id, user.project_id)
            row = _user_row(user) | {
                "id": user.id,
                "tenant_id": user.tenant_id,
                "created_at": user.created_at,
            }
            await add(connection, users, row, _user_taken(user))

    async def replace_user(self, user: User, act: Act) -> None:
        check_user(user)
        async with self._write(act) as connection:
            await check_project_exists(connection, user.tenant_id, user.project_id)
            where = (users.c.tenant_id == user.tenant_id) & (users.c.id == user.id)
            errors = missing("user", user.id), _user_taken(user)
            await change(connection, users, where, _user_row(user), errors)

    async def users(self) -> tuple[User, ...]:
        query = select(users).order_by(users.c.created_at, users.c.id)
        return tuple(map(rows.user, await self._rows(query)))


def missing(noun: str, object_id: str, param: str = "id") -> NotFound:
    return NotFound(f"There is no {noun} with the id {object_id[:40]!r}.", param=param)


def is_project_of(tenant_id: str, project_id: str) -> ColumnElement[bool]:
    return (projects.c.tenant_id == tenant_id) & (projects.c.id == project_id)


async def check_tenant_exists(connection: AsyncConnection, tenant_id: str) -> None:
    await check_exists(connection, tenants.c.id == tenant_id, missing("tenant", tenant_id, "tenant_id"))


async def check_project_exists(connection: AsyncConnection, tenant_id: str, project_id: str) -> None:
    """A project of another tenant does not exist."""
    await check_tenant_exists(connection, tenant_id)
    where = is_project_of(tenant_id, project_id)
    await check_exists(connection, where, missing("project", project_id, "project_id"))


def _refuse_to_disable_default(owner: Tenant | Project, default_id: str) -> None:
    if owner.id == default_id and owner.disabled_at is not None:
        # The platform's own admin keys live there, and nobody else could enable it again.
        raise Conflict(f"{default_id!r} cannot be disabled; revoke its keys instead.", param="disabled_at")


def _tenant_row(tenant: Tenant) -> dict[str, Any]:
    return {"name": tenant.name, "disabled_at": tenant.disabled_at, "webhook_url": tenant.webhook_url}


def _project_row(project: Project) -> dict[str, Any]:
    return {"name": project.name, "disabled_at": project.disabled_at}


def _user_row(user: User) -> dict[str, Any]:
    return {
        "project_id": user.project_id,
        "issuer": user.issuer,
        "subject": user.subject,
        "name": user.name,
        "role": user.role.value,
        "disabled_at": user.disabled_at,
    }


def _tenant_taken(tenant: Tenant) -> Conflict:
    return Conflict(f"A tenant {tenant.name!r} or with the id {tenant.id!r} exists already.", param="name")


def _project_taken(project: Project) -> Conflict:
    return Conflict(f"A project {project.name!r} or with the id {project.id!r} exists already.", param="name")


def _user_taken(user: User) -> Conflict:
    return Conflict(
        f"A user with the subject {user.subject[:60]!r} of this issuer, or with the id {user.id!r}, "
        "exists already.",
        param="subject",
    )
