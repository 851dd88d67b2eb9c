"""How every question reads and writes: one border for foreign errors, one transaction for a change.

A change, the revision that pollers watch and the entry of the audit log are written together or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, Select, Table, exists, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from inferhub.core.audit import Act, chain
from inferhub.core.clock import unix_s
from inferhub.core.errors import Conflict, InferHubError, NotFound, SetupError
from inferhub.stores.catalog.checks import check_act
from inferhub.stores.catalog.tables import audit_log, state


@dataclass(frozen=True, slots=True)
class Database:
    """One opened database."""

    writer: AsyncEngine
    reader: AsyncEngine
    translate: Callable[[Exception], InferHubError | None]
    """What the database raised → an error of ours; None for what does not come from it."""
    timeout_s: float | None = None
    """For one read or one change, the way back to the pool included."""


class Session:
    """What the questions are asked through."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self) -> None:
        await self._database.reader.dispose()
        await self._database.writer.dispose()

    async def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with self._border(), self._database.reader.connect() as connection:
            found: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return found

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._border(), self._database.writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def _write(self, act: Act | None, *, is_change: bool = True) -> AsyncIterator[AsyncConnection]:
        if act is not None:
            check_act(act)
        async with self._transaction() as connection:
            # Held until the commit. Writers of every process queue here, so that what one of them counts,
            # compares or chains to is still so when it writes. SQLite's lock is older: BEGIN IMMEDIATE.
            end = (await connection.execute(select(state).with_for_update())).one()
            yield connection
            new: dict[str, Any] = {"revision": state.c.revision + 1} if is_change else {}
            if act is not None:
                new |= await _append(connection, act, end.audit_seq, end.audit_hash)
            await connection.execute(update(state).values(new))

    @asynccontextmanager
    async def _border(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._database.timeout_s):
                yield
        except InferHubError:
            raise
        except Exception as error:
            ours = self._database.translate(error)
            if ours is None:
                raise
            raise ours from error


async def _append(connection: AsyncConnection, act: Act, seq: int, previous_hash: str) -> dict[str, Any]:
    entry = chain(seq + 1, unix_s(), act, previous_hash)
    await connection.execute(
        insert(audit_log).values(
            seq=entry.seq,
            at=entry.at,
            actor=act.actor,
            action=act.action,
            target=act.target,
            tenant_id=act.tenant_id,
            # Escaped to ASCII by `core.audit` when it is hashed; here as it is.
            detail=msgspec.json.encode(dict(act.detail)).decode(),
            request_id=act.request_id,
            previous_hash=entry.previous_hash,
            hash=entry.hash,
        )
    )
    return {"audit_seq": entry.seq, "audit_hash": entry.hash}


# --- pieces of a change, within its transaction -------------------------------------------------------


async def check_room(connection: AsyncConnection, table: Table, most: int, nouns: str) -> None:
    count = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
    if count >= most:
        raise SetupError(f"There are {count} {nouns} already, the most this catalog takes.")


async def check_exists(connection: AsyncConnection, where: ColumnElement[bool], missing: NotFound) -> None:
    if not (await connection.execute(select(exists().where(where)))).scalar_one():
        raise missing


async def add(connection: AsyncConnection, table: Table, row: Mapping[str, Any], taken: Conflict) -> None:
    try:
        await connection.execute(insert(table).values(**row))
    except IntegrityError as error:
        raise taken from error


async def change(
    connection: AsyncConnection,
    table: Table,
    where: ColumnElement[bool],
    row: Mapping[str, Any],
    errors: tuple[NotFound, Conflict],
) -> None:
    """Change one row. Raises the first of `errors` where there is none, the second where a name is taken."""
    missing, taken = errors
    try:
        changed = await connection.execute(update(table).where(where).values(**row))
    except IntegrityError as error:
        raise taken from error
    if changed.rowcount != 1:
        raise missing
