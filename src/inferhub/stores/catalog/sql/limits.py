"""Quotas and budgets."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from inferhub.core.audit import Act
from inferhub.core.errors import Conflict
from inferhub.core.quota import Quota
from inferhub.stores.catalog import base
from inferhub.stores.catalog.checks import check_quota, is_id
from inferhub.stores.catalog.sql import rows
from inferhub.stores.catalog.sql.session import Session, add, check_exists, check_room
from inferhub.stores.catalog.sql.tenancy import check_tenant_exists, is_project_of, missing
from inferhub.stores.catalog.tables import api_keys, quotas


class Limits(Session):
    async def set_quota(self, quota: Quota, act: Act) -> Quota:
        check_quota(quota)
        async with self._write(act) as connection:
            await _check_subject(connection, quota)
            same = (
                (quotas.c.level == quota.level)
                & (quotas.c.subject_id == quota.subject_id)
                & (quotas.c.unit == str(quota.unit))
                & (quotas.c.window == str(quota.window))
            )
            found = (await connection.execute(select(quotas).where(same))).one_or_none()
            if found is None:
                await check_room(connection, quotas, base.MAX_QUOTAS, "quotas")
                await _add_quota(connection, quota)
                return quota
            new = {"limit": quota.limit, "mode": quota.mode}
            await connection.execute(update(quotas).where(same).values(new))
            return replace(rows.quota(found), limit=quota.limit, mode=quota.mode)

    async def delete_quota(self, quota_id: str, act: Act) -> Quota:
        async with self._write(act) as connection:
            if not is_id(quota_id):
                raise missing("quota", quota_id)
            found = (await connection.execute(select(quotas).where(quotas.c.id == quota_id))).one_or_none()
            if found is None:
                raise missing("quota", quota_id)
            await connection.execute(delete(quotas).where(quotas.c.id == quota_id))
            return rows.quota(found)

    async def quotas(self) -> tuple[Quota, ...]:
        query = select(quotas).order_by(quotas.c.created_at, quotas.c.id)
        return tuple(map(rows.quota, await self._rows(query)))


async def _check_subject(connection: AsyncConnection, quota: Quota) -> None:
    """It exists, and it is the tenant's: otherwise it does not exist for it."""
    await check_tenant_exists(connection, quota.tenant_id)
    absent = missing(quota.level, quota.subject_id, "subject_id")
    if quota.level == "project":
        await check_exists(connection, is_project_of(quota.tenant_id, quota.subject_id), absent)
    elif quota.level == "key":
        is_theirs = (api_keys.c.tenant_id == quota.tenant_id) & (api_keys.c.id == quota.subject_id)
        await check_exists(connection, is_theirs, absent)
    elif quota.subject_id != quota.tenant_id:
        raise absent


async def _add_quota(connection: AsyncConnection, quota: Quota) -> None:
    row = {
        "id": quota.id,
        "tenant_id": quota.tenant_id,
        "level": quota.level,
        "subject_id": quota.subject_id,
        "unit": str(quota.unit),
        "window": str(quota.window),
        "limit": quota.limit,
        "mode": quota.mode,
        "created_at": quota.created_at,
    }
    taken = Conflict(f"A quota with the id {quota.id!r} exists already.", param="id")
    await add(connection, quotas, row, taken)
