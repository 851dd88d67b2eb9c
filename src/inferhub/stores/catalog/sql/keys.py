"""API keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from inferhub.core.audit import Act
from inferhub.core.clock import unix_s
from inferhub.core.errors import Conflict, Invalid
from inferhub.core.tenancy import ApiKey
from inferhub.stores.catalog import base
from inferhub.stores.catalog.checks import check_key, check_moment, check_overlap, is_key_id
from inferhub.stores.catalog.sql import rows
from inferhub.stores.catalog.sql.session import Session, add, check_room
from inferhub.stores.catalog.sql.tenancy import check_project_exists, missing
from inferhub.stores.catalog.tables import api_keys

_USES_AT_ONCE = 1000


class Keys(Session):
    async def create_key(self, key: ApiKey, act: Act) -> None:
        check_key(key)
        async with self._write(act) as connection:
            await _add_key(connection, key)

    async def keys(self) -> tuple[ApiKey, ...]:
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        return tuple(map(rows.api_key, await self._rows(query)))

    async def revoke_key(self, key_id: str, act: Act) -> ApiKey:
        async with self._write(act) as connection:
            is_live = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            if is_key_id(key_id):
                await connection.execute(update(api_keys).where(is_live).values(revoked_at=unix_s()))
            return await _key(connection, key_id)

    async def rotate_key(self, key_id: str, successor: ApiKey, overlap_until: int, act: Act) -> ApiKey:
        now = unix_s()
        check_key(successor)
        check_overlap(overlap_until, now)
        async with self._write(act) as connection:
            old = await _key(connection, key_id)
            if reason := _why_not_rotated(old, now):
                raise Conflict(f"The API key {old.id} {reason}; create a new one.", param="id")
            if (successor.tenant_id, successor.project_id) != (old.tenant_id, old.project_id):
                raise Invalid("The successor of a key is in the same tenant and project.", param="project_id")
            await _add_key(connection, successor)
            ends_at = overlap_until if old.expires_at is None else min(overlap_until, old.expires_at)
            new = {"rotated_to": successor.id, "expires_at": ends_at}
            await connection.execute(update(api_keys).where(api_keys.c.id == old.id).values(new))
            return await _key(connection, old.id)

    async def note_key_use(self, used_at: Mapping[str, int]) -> None:
        for at in used_at.values():
            check_moment(at, "used_at")
        # Sorted, so that two gateways never wait for each other's rows crosswise.
        uses = ({"key": key, "at": used_at[key]} for key in sorted(used_at) if is_key_id(key))
        known = api_keys.c.last_used_at
        is_newer = or_(known.is_(None), known < bindparam("at"))
        note = (
            update(api_keys)
            .where(api_keys.c.id == bindparam("key"), is_newer)
            .values(last_used_at=bindparam("at"))
        )
        for some in _chunks(uses):
            async with self._transaction() as connection:
                await connection.execute(note, some)


async def _add_key(connection: AsyncConnection, key: ApiKey) -> None:
    await check_room(connection, api_keys, base.MAX_KEYS, "API keys")
    await check_project_exists(connection, key.tenant_id, key.project_id)
    row = {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "digest": key.digest,
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
        "tenant_id": key.tenant_id,
        "project_id": key.project_id,
        "scopes": rows.words(key.scopes),
        "models": rows.words(key.models),
        "expires_at": key.expires_at,
        "rotated_to": key.rotated_to,
        "last_used_at": key.last_used_at,
    }
    taken = Conflict(f"An API key with the id {key.id!r} exists already.", param="id")
    await add(connection, api_keys, row, taken)


async def _key(connection: AsyncConnection, key_id: str) -> ApiKey:
    # An id of another form cannot be there, and PostgreSQL would not even take a NUL to compare.
    if is_key_id(key_id):
        found = await connection.execute(select(api_keys).where(api_keys.c.id == key_id))
        if (row := found.one_or_none()) is not None:
            return rows.api_key(row)
    raise missing("API key", key_id)


def _why_not_rotated(key: ApiKey, now: int) -> str | None:
    if key.revoked_at is not None:
        return "is revoked"
    if key.rotated_to is not None:
        return f"was rotated to {key.rotated_to} already"
    if key.expires_at is not None and key.expires_at <= now:
        return "has expired"
    return None


def _chunks(uses: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(uses, _USES_AT_ONCE)):
        yield some
