"""A bounded asyncpg pool that never hangs: opening, reconnecting, time limits, and errors in our words.

Used by the PostgreSQL answers of usage and responses, which say what to ask. A server that is frozen, gone
or restarted costs a caller one bounded wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]

from inferhub.core.errors import SetupError, StoreFailed

CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 4

_GONE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
)

T = TypeVar("T")
Migrate = Callable[[Any, str], Awaitable[None]]
"""(connection, the server's name for messages): bring the tables up, in a transaction that is ours alone."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose tables these are, for messages and for the lock."""

    setting: str
    store: str
    content: str
    lock: int
    """Whoever holds it changes the schema."""


class PostgresPool:
    """Runs work on a connection. Made by `open_pool`."""

    def __init__(self, pool: asyncpg.Pool, name: str) -> None:
        self._pool = pool
        self._name = name

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Raises `StoreFailed`. `work` may run twice: a server that came back left us dead connections."""
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                try:
                    return await self._once(work)
                except _GONE:
                    await self._pool.expire_connections()
                    return await self._once(work)
        except TimeoutError as error:
            raise StoreFailed(f"{self._name} did not answer in {STATEMENT_TIMEOUT_S:g} s.") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreFailed(f"{self._name} failed: {_reason(error)}.") from error

    async def ping(self) -> None:
        await self.run(lambda connection: connection.execute("SELECT 1"))

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._pool.close()
        except (TimeoutError, *_GONE):
            self._pool.terminate()

    async def _once(self, work: Callable[[Any], Awaitable[T]]) -> T:
        connection = await self._pool.acquire(timeout=CONNECT_TIMEOUT_S)
        try:
            result = await work(connection)
        except BaseException as error:
            if not isinstance(error, asyncpg.PostgresError):
                # It may be in the middle of an answer that never comes; asking it to cancel could hang too.
                connection.terminate()
            await self._pool.release(connection, timeout=CONNECT_TIMEOUT_S)
            raise
        await self._pool.release(connection, timeout=CONNECT_TIMEOUT_S)
        return result


async def open_pool(url: str, subject: Subject, migrate: Migrate) -> PostgresPool:
    """Connect to `postgresql://…` and migrate. Raises `SetupError` with the remedy; its `wire_code` is
    `store_unreachable` where only the server is away."""
    pool, where = _pool(url, subject)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + STATEMENT_TIMEOUT_S):
            await pool
            async with pool.acquire() as connection, connection.transaction():
                # Held to the end of the transaction; other processes that start now wait here.
                await connection.execute("SELECT pg_advisory_xact_lock($1)", subject.lock)
                await migrate(connection, where)
    except BaseException as error:
        pool.terminate()
        if isinstance(error, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError)):
            raise _unusable(where, subject, error) from error
        raise
    return PostgresPool(pool, f"The {subject.store} {where}")


def _pool(url: str, subject: Subject) -> tuple[asyncpg.Pool, str]:
    """The second is what messages may name: no user, no password, no parameters."""
    try:
        parts = urlsplit(url)
        where = f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "inferhub"},
        )
    except (ValueError, OSError, asyncpg.InterfaceError):
        # Its text may repeat the URL.
        raise SetupError(
            f"{subject.setting} is no PostgreSQL URL; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
            param=subject.setting,
        ) from None
    return pool, where


def _unusable(where: str, subject: Subject, error: BaseException) -> SetupError:
    setting, code = subject.setting, None
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        said = f"PostgreSQL at {where} refuses the user or password of {setting}. Correct them."
    elif isinstance(error, asyncpg.InvalidCatalogNameError):
        said = f"PostgreSQL has no database {where}. Create it, or name another one in {setting}."
    elif isinstance(error, (OSError, asyncpg.CannotConnectNowError)):
        said = f"No PostgreSQL answers at {where}. Start it, or correct {setting}."
        code = "store_unreachable"
    else:
        said = f"PostgreSQL at {where} cannot hold the {subject.content}: {_reason(error)}. "
        said += f"Mend that, or change {setting}."
    return SetupError(said, param=setting, code=code)


def _reason(error: BaseException) -> str:
    """The server's own short message; details may quote rows, and other texts the connection's parameters."""
    if isinstance(error, asyncpg.PostgresError) and getattr(error, "message", None):
        return f"{str(error.message)[:200]} ({error.sqlstate})"
    return type(error).__name__
