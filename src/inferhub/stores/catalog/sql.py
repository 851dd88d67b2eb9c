"""The catalog in a relational database, in portable SQL. Opened by the file of its database (`sqlite`).

One writer, readers apart: every change is one transaction that ends by raising the revision.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from inferhub.core.clock import unix_s
from inferhub.core.errors import CatalogCorrupt, Conflict, InferHubError, NotFound, SetupError
from inferhub.core.tenancy import ApiKey, Role
from inferhub.stores.catalog.base import MAX_KEYS, StoredSpec
from inferhub.stores.catalog.tables import api_keys, specs, state


class SqlCatalog:
    """A `Catalog`. `translate` turns what the database raises into an error of ours."""

    def __init__(
        self,
        writer: AsyncEngine,
        reader: AsyncEngine,
        translate: Callable[[SQLAlchemyError], InferHubError],
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._translate = translate

    async def create_key(self, key: ApiKey) -> None:
        async with self._write() as connection:
            count = (await connection.execute(select(func.count()).select_from(api_keys))).scalar_one()
            if count >= MAX_KEYS:
                raise SetupError(f"There are {count} API keys already, the most this catalog takes.")
            try:
                await connection.execute(
                    insert(api_keys).values(
                        id=key.id,
                        name=key.name,
                        role=key.role.value,
                        digest=key.digest,
                        created_at=key.created_at,
                        revoked_at=key.revoked_at,
                    )
                )
            except IntegrityError as error:
                raise Conflict(f"An API key with the id {key.id!r} exists already.", param="id") from error

    async def keys(self) -> tuple[ApiKey, ...]:
        async with self._read() as connection:
            query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
            return tuple(_api_key(row) for row in await connection.execute(query))

    async def revoke_key(self, key_id: str) -> ApiKey:
        async with self._write() as connection:
            is_live = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            await connection.execute(update(api_keys).where(is_live).values(revoked_at=unix_s()))
            row = (await connection.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()
            if row is None:
                raise NotFound(f"There is no API key with the id {key_id[:40]!r}.", param="id")
            return _api_key(row)

    async def spec(self) -> StoredSpec | None:
        async with self._read() as connection:
            row = (await connection.execute(select(specs))).one_or_none()
            return StoredSpec(row.text, row.revision, row.applied_at) if row else None

    async def replace_spec(self, text: str, expected_revision: int) -> StoredSpec:
        new = StoredSpec(text, expected_revision + 1, unix_s())
        values = {"revision": new.revision, "text": new.text, "applied_at": new.applied_at}
        async with self._write() as connection:
            found = (await connection.execute(select(specs.c.revision))).scalar_one_or_none() or 0
            if found == expected_revision == 0:
                await connection.execute(insert(specs).values(id=1, **values))
            else:
                # The condition stands in the statement too: not every database locks on reading.
                is_expected = specs.c.revision == expected_revision
                changed = await connection.execute(update(specs).where(is_expected).values(values))
                if changed.rowcount != 1:
                    raise Conflict(
                        f"The spec is at revision {found}, not {expected_revision}: somebody applied another "
                        "one meanwhile. Look at the difference, then apply again."
                    )
        return new

    async def revision(self) -> int:
        async with self._read() as connection:
            return int((await connection.execute(select(state.c.revision))).scalar_one())

    async def check_pepper(self, pepper: bytes) -> None:
        # Four bytes tell two peppers apart and are no help in guessing one.
        check = hmac.digest(pepper, b"inferhub pepper check", "sha256")[:4]
        if await self._pepper_check() is None:
            async with self._write() as connection:
                unset = state.c.pepper_check.is_(None)
                await connection.execute(update(state).where(unset).values(pepper_check=check))
        if await self._pepper_check() != check:
            raise SetupError(
                "The pepper is not the one that the API keys of this catalog were made under, so none of "
                "them would be accepted. Restore the file 'pepper' in data_dir or set INFERHUB_PEPPER as "
                "before; to give up all keys, move the catalog away.",
                param="pepper",
            )

    async def _pepper_check(self) -> bytes | None:
        async with self._read() as connection:
            check: bytes | None = (await connection.execute(select(state.c.pepper_check))).scalar_one()
            return check

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._reader.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._translate(error) from error

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._writer.begin() as connection:
                yield connection
                await connection.execute(update(state).values(revision=state.c.revision + 1))
        except SQLAlchemyError as error:
            raise self._translate(error) from error


def _api_key(row: Row[Any]) -> ApiKey:
    try:
        role = Role(row.role)
    except ValueError as error:
        raise CatalogCorrupt(
            f"API key {row.id!r} has the role {row.role[:40]!r}, which this InferHub does not know. "
            "Upgrade InferHub, or revoke that key with the version that made it."
        ) from error
    return ApiKey(row.id, row.name, role, row.digest, row.created_at, row.revoked_at)
