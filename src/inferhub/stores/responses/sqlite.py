"""Stored responses in one SQLite file, shared by the processes of one machine. Opened by `stores`.

One thread, one connection; the event loop never waits for the disk. Expired rows leave with every write.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.group_commit import FileSession, GroupCommit
from inferhub.stores.responses.base import Stored
from inferhub.stores.sqlite_wal import (
    Kind,
    file_of,
    make_private,
    marked,
    refuse_newer,
    switch_to_wal,
    used_bytes,
)

TIMEOUT_S = 2.0
_KIND = Kind("responses_url", "stored responses", 0x1F4B_5E5A, schema=1)
_WAL_WAIT_S = 10.0
_REMOVED_AT_ONCE = 64

_TABLES = (
    "CREATE TABLE IF NOT EXISTS responses (n INTEGER PRIMARY KEY, owner TEXT NOT NULL, id TEXT NOT NULL, "
    "previous_id TEXT NOT NULL, due_ms INTEGER NOT NULL, size INTEGER NOT NULL, value BLOB NOT NULL, "
    "UNIQUE (owner, id))",
    "CREATE INDEX IF NOT EXISTS responses_due ON responses (due_ms)",
    "CREATE INDEX IF NOT EXISTS responses_size ON responses (owner, size)",
    "CREATE TABLE IF NOT EXISTS response_items (owner TEXT NOT NULL, item_id TEXT NOT NULL, "
    "response INTEGER NOT NULL REFERENCES responses ON DELETE CASCADE, "
    "PRIMARY KEY (owner, item_id, response)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS response_items_response ON response_items (response)",
)
_INSERT = (
    "INSERT INTO responses (owner, id, previous_id, due_ms, size, value) VALUES (?, ?, ?, ?, ?, ?) "
    "RETURNING n"
)
_CHAIN = """
WITH RECURSIVE chain (n, previous_id, depth, total) AS (
    SELECT n, previous_id, 1, size FROM responses WHERE owner = :owner AND id = :id AND due_ms > :now
    UNION ALL
    SELECT r.n, r.previous_id, depth + 1, total + r.size FROM chain
    JOIN responses AS r ON r.owner = :owner AND r.id = chain.previous_id AND r.due_ms > :now
    WHERE depth < :max_depth AND total <= :max_bytes
)
SELECT r.id, r.previous_id, r.value FROM chain JOIN responses AS r USING (n) ORDER BY depth
"""
_HOLDING = """
SELECT i.item_id, r.id, r.previous_id, r.value
FROM response_items AS i JOIN responses AS r ON r.n = i.response
WHERE i.owner = ? AND i.item_id IN (SELECT value FROM json_each(?)) AND r.due_ms > ? ORDER BY r.n
"""
_PURGE = "DELETE FROM responses WHERE n IN (SELECT n FROM responses WHERE due_ms <= ? LIMIT ?)"
# Whoever stores most makes room, so that nobody can push out what others keep; and of that the oldest part,
# so that nobody loses what was stored just now.
_EVICT = """
WITH greedy AS (
    SELECT owner, count(*) AS stored FROM responses GROUP BY owner ORDER BY sum(size) DESC LIMIT 1)
DELETE FROM responses WHERE n IN (
    SELECT n FROM responses WHERE owner = (SELECT owner FROM greedy)
    ORDER BY n LIMIT (SELECT max(1, min(?, stored / 8)) FROM greedy))
"""


async def open_responses(
    url: str, *, max_bytes: int, clock: Callable[[], float] = time.time, timeout_s: float = TIMEOUT_S
) -> SqliteResponses:
    """Open `sqlite:///PATH`, made where needed. Raises `SetupError` with the remedy."""
    path = file_of(url, _KIND.setting)
    session = await asyncio.to_thread(ResponsesFile, path, clock, timeout_s, max_bytes)
    return SqliteResponses(GroupCommit(session, f"stored responses {path}", timeout_s))


class SqliteResponses:
    """Answers `ResponseStore` from a file. A killed process loses nothing, a power cut the last moments."""

    def __init__(self, commits: GroupCommit[ResponsesFile]) -> None:
        self._commits = commits

    async def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        await self._commits.run(lambda file: file.put(owner, stored, ttl_s))

    async def chain(
        self, owner: str, response_id: str, *, max_depth: int, max_bytes: int
    ) -> tuple[Stored, ...]:
        return await self._commits.run(lambda file: file.chain(owner, response_id, max_depth, max_bytes))

    async def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        return await self._commits.run(lambda file: file.holding(owner, item_ids))

    async def delete(self, owner: str, response_id: str) -> bool:
        return await self._commits.run(lambda file: file.delete(owner, response_id))

    async def ping(self) -> None:
        await self._commits.run(lambda file: file.delete("", ""))

    async def close(self) -> None:
        await self._commits.close()


class ResponsesFile(FileSession):
    """The open file, in the thread."""

    def __init__(self, path: Path, clock: Callable[[], float], timeout_s: float, max_bytes: int) -> None:
        super().__init__(_open(path, timeout_s))
        self._path = path
        self._clock = clock
        self._max_bytes = max_bytes

    # --- questions ---

    def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        now_ms = self._now_ms()
        run = self._connection.execute
        run(_PURGE, (now_ms, _REMOVED_AT_ONCE))
        self.delete(owner, stored.id)
        due_ms, size = now_ms + max(1, int(ttl_s * 1000)), len(stored.value)
        row = (owner, stored.id, stored.previous_id, due_ms, size, stored.value)
        [number] = run(_INSERT, row).fetchone()
        self._connection.executemany(
            "INSERT INTO response_items (owner, item_id, response) VALUES (?, ?, ?)",
            [(owner, item_id, number) for item_id in set(stored.item_ids)],
        )
        while used_bytes(self._connection) > self._max_bytes:
            if run(_EVICT, (_REMOVED_AT_ONCE,)).rowcount <= 0:
                break

    def chain(self, owner: str, response_id: str, max_depth: int, max_bytes: int) -> tuple[Stored, ...]:
        asked = {
            "owner": owner,
            "id": response_id,
            "now": self._now_ms(),
            "max_depth": max_depth,
            "max_bytes": max_bytes,
        }
        return tuple(Stored(*row) for row in self._connection.execute(_CHAIN, asked))

    def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        # As JSON: so many placeholders as there may be items, no statement has.
        rows = self._connection.execute(_HOLDING, (owner, json.dumps(list(item_ids)), self._now_ms()))
        return {item_id: Stored(*rest) for item_id, *rest in rows}

    def delete(self, owner: str, response_id: str) -> bool:
        found = self._connection.execute(
            "DELETE FROM responses WHERE owner = ? AND id = ? RETURNING due_ms > ?",
            (owner, response_id, self._now_ms()),
        ).fetchall()
        return any(is_current for (is_current,) in found)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def explain(self, error: Exception) -> StoreFailed:
        return StoreFailed(f"The stored responses {self._path} failed: {error}.")


# --- opening ---------------------------------------------------------------------------------------


def _open(path: Path, timeout_s: float) -> sqlite3.Connection:
    try:
        make_private(path)
        # Handed to one other thread after this.
        connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            switch_to_wal(connection, _WAL_WAIT_S)
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA foreign_keys=ON")
            with marked(connection, path, _KIND) as found:
                refuse_newer(found, path, _KIND)
                for statement in _TABLES:
                    connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SetupError(
            f"The stored responses {path} cannot be used: {reason}. Mend the permissions of the file and of "
            "its folder, or choose another responses_url; a damaged file can be moved away, or restored "
            "from a backup.",
            param="responses_url",
        ) from error
