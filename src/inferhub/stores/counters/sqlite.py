"""Counters in an SQLite file, shared by the processes of one machine and kept over restarts.

Opened by `stores.open_counters`. One thread, one connection: the driver is called directly, for every
call of every client passes here.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from inferhub.core.errors import SetupError
from inferhub.core.quota import Claim, Meter, Reading, Refusal, Reservation
from inferhub.stores.counters.sqlite_file import KIND, connect
from inferhub.stores.counters.sqlite_rows import SqliteSession
from inferhub.stores.counters.window import Clock, system_clock
from inferhub.stores.group_commit import GroupCommit
from inferhub.stores.sqlite_wal import file_of

TIMEOUT_S = 2.0


async def open_counters(
    url: str, *, clock: Clock = system_clock, timeout_s: float = TIMEOUT_S
) -> SqliteCounters:
    """Open `sqlite:///PATH`, made where needed. Raises `SetupError` with the remedy."""
    path = file_of(url, KIND.setting)
    session = await asyncio.to_thread(_open, path, clock, timeout_s)
    return SqliteCounters(GroupCommit(session, f"counters {path}", timeout_s))


def _open(path: Path, clock: Clock, timeout_s: float) -> SqliteSession:
    session = SqliteSession(connect(path, timeout_s), path, clock)
    try:
        session.begin()
        session.after_a_reboot()
        session.commit()
    except sqlite3.Error as error:
        session.close()
        raise SetupError(session.explain(error).message, param="counters_url") from error
    return session


class SqliteCounters:
    """Answers `Counters` from a file. `synchronous=NORMAL`: a killed process loses nothing, a power cut
    at most the last moments.
    """

    def __init__(self, commits: GroupCommit[SqliteSession]) -> None:
        self._commits = commits

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        return await self._commits.run(lambda session: session.book.reserve(ticket, claims, session.now))

    async def settle(self, reservation: Reservation, used: Mapping[str, int]) -> tuple[Reading, ...]:
        return await self._commits.run(lambda session: session.book.settle(reservation, used, session.now))

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        await self._commits.run(lambda session: session.book.renew(reservations, session.now))

    async def charge(self, ticket: str, used: Sequence[Claim]) -> None:
        await self._commits.run(lambda session: session.book.charge(ticket, used, session.now))

    async def read(self, meters: Sequence[Meter]) -> tuple[Reading, ...]:
        return await self._commits.run(lambda session: session.book.read(meters, session.now))

    async def mark_once(self, mark: str, ttl_s: float) -> bool:
        return await self._commits.run(lambda session: session.mark_once(mark, ttl_s))

    async def ping(self) -> None:
        await self._commits.run(SqliteSession.ping)

    async def close(self) -> None:
        await self._commits.close()
