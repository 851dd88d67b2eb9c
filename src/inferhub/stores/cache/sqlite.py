"""Answers in one SQLite file, shared by the processes of one machine. Opened by `stores.open_answers`.

One thread, one connection; the event loop never waits for the disk. Expired rows leave with every write.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.cache.base import MAX_VALUE_BYTES
from inferhub.stores.cache.sqlite_file import KIND, inode_of, is_corrupt, open_file, replace_file
from inferhub.stores.group_commit import FileSession, GroupCommit
from inferhub.stores.sqlite_wal import file_of, used_bytes

TIMEOUT_S = 2.0
MAX_FILE_BYTES = 512 * 1024**2
"""Of stored pages; beyond it what would end first leaves first."""
_PURGED_AT_ONCE = 64

_GET = "SELECT value FROM answers WHERE key = ? AND due_ms > ?"
_PUT = (
    "INSERT INTO answers (key, value, due_ms) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, due_ms = excluded.due_ms"
)
_PURGE = "DELETE FROM answers WHERE id IN (SELECT id FROM answers WHERE due_ms <= ? ORDER BY due_ms LIMIT ?)"
_EVICT = "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY due_ms LIMIT ?)"


async def open_shared(
    url: str,
    *,
    clock: Callable[[], float] = time.time,
    timeout_s: float = TIMEOUT_S,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> SqliteAnswers:
    """Open `sqlite:///PATH`, made where needed. Raises `SetupError` with the remedy."""
    path = file_of(url, KIND.setting)
    session = await asyncio.to_thread(AnswersFile, path, clock, timeout_s, max_file_bytes)
    return SqliteAnswers(GroupCommit(session, f"answers {path}", timeout_s))


class SqliteAnswers:
    """Answers `SharedAnswers` from a file. A killed process loses nothing, a power cut the last moments."""

    def __init__(self, commits: GroupCommit[AnswersFile]) -> None:
        self._commits = commits

    async def get(self, key: bytes) -> bytes | None:
        return await self._commits.run(lambda file: file.get(key))

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        await self._commits.run(lambda file: file.put([(key, value)], ttl_s))

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        if len(value) > MAX_VALUE_BYTES:
            raise StoreFailed(f"{len(value)} bytes are too many for an entry.")
        return await self._commits.run(lambda file: file.add(key, value, ttl_s))

    async def delete(self, key: bytes) -> None:
        await self._commits.run(lambda file: file.delete(key))

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return await self._commits.run(lambda file: [file.get(key) for key in keys])

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        await self._commits.run(lambda file: file.put(entries, ttl_s))

    async def discard(self, key: bytes, value: bytes) -> None:
        await self._commits.run(lambda file: file.discard(key, value))

    async def ping(self) -> None:
        await self._commits.run(lambda file: file.get(b""))

    async def close(self) -> None:
        await self._commits.close()


class AnswersFile(FileSession):
    """The open file, in the thread. Opened anew when it is damaged, or another one is at its path."""

    def __init__(self, path: Path, clock: Callable[[], float], timeout_s: float, max_file_bytes: int) -> None:
        connection, self._inode = open_file(path, timeout_s)
        super().__init__(connection)
        self._path = path
        self._clock = clock
        self._timeout_s = timeout_s
        self._max_file_bytes = max_file_bytes

    # --- questions ---

    def get(self, key: bytes) -> bytes | None:
        row = self._connection.execute(_GET, (key, self._now_ms())).fetchone()
        # Somebody else's hand may have stored another type.
        return row[0] if row is not None and isinstance(row[0], bytes) else None

    def put(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        now_ms = self._now_ms()
        due_ms = now_ms + max(1, int(ttl_s * 1000))
        self._connection.execute(_PURGE, (now_ms, _PURGED_AT_ONCE))
        fitting = [(key, value, due_ms) for key, value in entries if len(value) <= MAX_VALUE_BYTES]
        self._connection.executemany(_PUT, fitting)
        while used_bytes(self._connection) > self._max_file_bytes:
            if self._connection.execute(_EVICT, (_PURGED_AT_ONCE,)).rowcount <= 0:
                break

    def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        found = self.get(key)
        if found is None:
            self.put([(key, value)], ttl_s)
        return found

    def delete(self, key: bytes) -> None:
        self._connection.execute("DELETE FROM answers WHERE key = ?", (key,))

    def discard(self, key: bytes, value: bytes) -> None:
        self._connection.execute("DELETE FROM answers WHERE key = ? AND value = ?", (key, value))

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # --- the session of `GroupCommit` ---

    def begin(self) -> None:
        if inode_of(self._path) != self._inode:
            self._reopen()
        super().begin()

    def explain(self, error: Exception) -> StoreFailed:
        if isinstance(error, SetupError):
            return StoreFailed(error.message)
        if isinstance(error, sqlite3.Error) and is_corrupt(error):
            # Callers are told that it failed this once; the next ones find a new file.
            with suppress(OSError, TimeoutError, sqlite3.Error):
                replace_file(self._path, self._inode, error)
        return StoreFailed(f"The answers {self._path} failed: {error}.")

    def _reopen(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()
        self._connection, self._inode = open_file(self._path, self._timeout_s)
