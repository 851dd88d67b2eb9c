"""Opens the catalog in PostgreSQL: a bounded pool, a limit on every wait, migrations, error translation.

Several gateways may open one database at once, also for the first time. The password is in no message.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, NullPool, event, text
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from inferhub.core.errors import CatalogCorrupt, Conflict, InferHubError, SetupError, StoreFailed
from inferhub.stores.catalog import migrations
from inferhub.stores.catalog.sql import SqlCatalog
from inferhub.stores.catalog.sql.session import Database

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError as missing:
    raise SetupError(
        "A catalog in PostgreSQL needs the package asyncpg. Install it: pip install 'inferhub[postgres]'",
        param="catalog_url",
    ) from missing

CONNECTIONS = 4
"""Of each gateway. Pollers, the admin API and the one writer at a time need no more."""
CONNECT_TIMEOUT_S = 3.0
FIRST_CONNECT_TIMEOUT_S = 10.0
"""At the start nobody waits for an answer, and the server may be starting too."""
COMMAND_TIMEOUT_S = 5.0
POOL_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 0.5
TIMEOUT_S = 6.0
"""For everything together: a server that is frozen would use up one limit after the other."""
MIGRATION_TIMEOUT_S = 60.0

_MIGRATION_LOCK = 0x696E6668  # "infh"; any number that nobody else takes
_SETTINGS = {
    "application_name": "inferhub",
    # Before our own limit, so that a wait for a lock ends with the connection still usable.
    "lock_timeout": "4s",
    # A gateway that is frozen in the middle of a change must not hold up the others.
    "idle_in_transaction_session_timeout": "10s",
}
_ADDRESS = re.compile(r"[A-Za-z0-9._:%,\[\]-]*(/[A-Za-z0-9._-]*)?")


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """Says goodbye only as long as somebody may be listening: the pool closes one after the other."""

    __slots__ = ()

    async def close(self, *, timeout: float | None = None) -> None:
        try:
            await super().close(timeout=min(timeout or CLOSE_TIMEOUT_S, CLOSE_TIMEOUT_S))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self.terminate()


async def open_catalog(url: str) -> SqlCatalog:
    """Open `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, migrated where needed. Raises `SetupError`
    with the remedy, or `StoreFailed` where the server does not answer."""
    place = f"The catalog in PostgreSQL at {_place(url)}"
    await _migrate(url, place)
    pool = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": POOL_TIMEOUT_S}
    engine = _engine(url, CONNECT_TIMEOUT_S, COMMAND_TIMEOUT_S, **pool)
    reader = engine.execution_options(isolation_level="AUTOCOMMIT")
    return SqlCatalog(Database(engine, reader, partial(_translate, place), TIMEOUT_S))


def _place(url: str) -> str:
    """Host, port and database, fit for a message. Raises `SetupError` where a password might be in them."""
    try:
        parts = urlsplit(url)
        address = parts.netloc.rpartition("@")[2] + parts.path
        is_cut = "@" in parts.path + parts.query or bool(parts.fragment)
        if "," not in address:  # one host; several are the driver's own extension
            _ = parts.port  # refuses what is no port
    except ValueError:
        address, is_cut = "", True
    if is_cut or not _ADDRESS.fullmatch(address):
        raise _unreadable()
    return address or "its default address"


def _unreadable() -> SetupError:
    return SetupError(
        "catalog_url cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with / ? # @ : "
        "and % in the password percent-encoded, and behind ? only what PostgreSQL knows, such as sslmode.",
        param="catalog_url",
    )


def _engine(url: str, connect_timeout_s: float, command_timeout_s: float, **pool: Any) -> AsyncEngine:
    async def connect() -> Any:
        # By the driver's own reading of the URL: it knows sslmode, sslrootcert and several hosts.
        try:
            return await asyncpg.connect(
                url,
                timeout=connect_timeout_s,
                command_timeout=command_timeout_s,
                server_settings=_SETTINGS,
                connection_class=_Connection,
            )
        except (ValueError, asyncpg.ClientConfigurationError):
            # It quotes the part of the URL that it did not understand: maybe the password.
            raise _unreadable() from None

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        # After a restart of the server the first use of each connection would fail.
        pool_pre_ping=pool.get("poolclass") is not NullPool,
        # A failing statement must not put a key's digest into a log.
        hide_parameters=True,
        **pool,
    )
    event.listen(engine.sync_engine, "handle_error", _give_up_silent_connection)
    return engine


def _give_up_silent_connection(context: ExceptionContext) -> None:
    # Otherwise it would be asked to roll back, and waited for once more.
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True


async def _migrate(url: str, place: str) -> None:
    engine = _engine(url, FIRST_CONNECT_TIMEOUT_S, MIGRATION_TIMEOUT_S, poolclass=NullPool)
    try:
        async with asyncio.timeout(MIGRATION_TIMEOUT_S), engine.begin() as connection:
            await connection.run_sync(_bring_up, place)
    except InferHubError:
        raise
    except Exception as error:
        ours = _translate_opening(place, error)
        if ours is None:
            raise
        raise ours from error
    finally:
        await engine.dispose()


def _bring_up(connection: Connection, place: str) -> None:
    if migrations.current(connection) == migrations.HEAD:
        return
    for limit in ("lock_timeout", "idle_in_transaction_session_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = '{MIGRATION_TIMEOUT_S:.0f}s'"))
    # Until the end of the transaction. Whoever comes second finds the work done.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    migrations.bring_up(connection, place, "restore a backup of that database")


_OPENING = {
    "28000": "refuses the login; check user and password in catalog_url, and pg_hba.conf there",
    "28P01": "refuses the password; check catalog_url",
    "3D000": "does not exist; make it with: createdb",
    "42501": "may not be changed by this user; grant it CREATE on the schema and ownership of the tables",
    "25006": "is read-only; name the primary server in catalog_url",
}


def _translate_opening(place: str, error: Exception) -> InferHubError | None:
    state = _sqlstate(error)
    if state in _OPENING:
        return SetupError(f"{place} {_OPENING[state]}.", param="catalog_url")
    if state in ("42704", "22023"):
        return _unreadable()
    if isinstance(error, FileNotFoundError | PermissionError):
        return SetupError(
            f"{place}: a file that catalog_url names cannot be read: a certificate, or the server's socket.",
            param="catalog_url",
        )
    return _translate(place, error)


def _translate(place: str, error: Exception) -> InferHubError | None:
    """Never with the driver's own words: they may quote what was sent."""
    state = _sqlstate(error)
    if state is None:
        return _translate_without_state(place, error)
    if state in ("40001", "40P01") or state.startswith("23"):
        return Conflict(f"{place} was changed by somebody else meanwhile; try again.")
    if state.startswith("XX00") and state != "XX000":
        return CatalogCorrupt(f"{place} is damaged (SQLSTATE {state}). Restore it from a backup.")
    if state in ("55P03", "57014", "25P03"):
        return StoreFailed(f"{place} was busy for too long; try again.", code="catalog_busy")
    if state == "53100":
        return StoreFailed(f"{place} has no space left on its disk.", code="disk_full")
    return StoreFailed(f"{place} failed (SQLSTATE {state}).")


def _translate_without_state(place: str, error: Exception) -> InferHubError | None:
    original = error.orig if isinstance(error, DBAPIError) else error
    cause = original.__cause__ if original is not None else None
    if any(isinstance(one, PoolTimeout | TimeoutError) for one in (error, original, cause)):
        return StoreFailed(f"{place} did not answer in time.")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | InterfaceError):
        return StoreFailed(f"{place} cannot be reached ({type(cause or original).__name__}).")
    if isinstance(error, SQLAlchemyError):
        return StoreFailed(f"{place} failed: {type(error).__name__}.")
    return None


def _sqlstate(error: BaseException) -> str | None:
    original = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(original, "sqlstate", None)
    return state if isinstance(state, str) else None
